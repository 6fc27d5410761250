// The paper. Gradio runs this once, with `element` (what canvas.html has become) and `props`:
// the page's value is what is to be read, as a data URL.
const INTERVAL = 150; // ms between what is sent while one draws
const MAX_LENGTH = 7.5e6; // of a data URL; the server refuses 8 MB

const canvas = element.querySelector("canvas");
const chooser = element.querySelector("input");
const pen = canvas.getContext("2d");
let isPicture = false; // and so gives way to the next stroke
let timer = null;

function clear() {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  isPicture = false;
}

function send(drawing) {
  clearTimeout(timer);
  timer = null;
  props.value = drawing;
}

function sendSoon() {
  timer ??= setTimeout(() => send(canvas.toDataURL()), INTERVAL);
}

function drawTo(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  pen.lineTo(x, y);
  pen.lineTo(x + 0.01, y); // or a dot would have no length, and not be drawn
  pen.stroke();
  sendSoon();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId); // a stroke may leave the paper and come back
  if (isPicture) clear();
  pen.beginPath();
  drawTo(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (event.isPrimary && canvas.hasPointerCapture(event.pointerId)) drawTo(event);
});

element.querySelector("button").addEventListener("click", () => {
  clear();
  send("");
});

chooser.addEventListener("change", () => {
  const reader = new FileReader();
  reader.addEventListener("load", () => showAndSend(reader.result));
  reader.readAsDataURL(chooser.files[0]);
  chooser.value = ""; // or the same file could not be chosen again
});

// A picture is sent as the browser shows it, no larger than the paper. What it cannot show, the
// server may still know.
function showAndSend(drawing) {
  clear();
  const picture = new Image();
  picture.addEventListener("load", () => {
    const fit = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    const [width, height] = [picture.width * fit, picture.height * fit];
    isPicture = true;
    pen.fillStyle = "#aaa"; // where it is transparent, black and white can both be seen
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    send(encode(picture, Math.min(1, fit)));
  });
  picture.addEventListener("error", () => {
    const isLarge = drawing.length > MAX_LENGTH;
    send(isLarge ? "" : drawing);
    if (isLarge) alert("This picture is too large.");
  });
  picture.src = drawing;
}

function encode(picture, factor) {
  const scaled = document.createElement("canvas");
  scaled.width = Math.max(1, Math.round(picture.width * factor));
  scaled.height = Math.max(1, Math.round(picture.height * factor));
  const context = scaled.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, scaled.width, scaled.height);
  return scaled.toDataURL();
}

clear();
pen.lineWidth = 40;
pen.lineCap = pen.lineJoin = "round";
