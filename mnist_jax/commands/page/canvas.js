// The paper. Gradio runs this once, with `element` (what canvas.html has become) and `props`:
// the page's value is what is to be read, as a data URL.
const INTERVAL = 150; // ms between what is sent while one draws
const MAX_LENGTH = 15e6; // of a data URL; the server refuses 16 MB

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
  pen.lineTo((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
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

// A file is sent as it is: what the browser cannot show, the server may still know. One that is
// too large is sent as it is shown.
function showAndSend(drawing) {
  clear();
  isPicture = true;
  const isLarge = drawing.length > MAX_LENGTH;
  const picture = new Image();
  picture.addEventListener("load", () => {
    const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    pen.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    if (isLarge) send(canvas.toDataURL());
  });
  picture.addEventListener("error", () => {
    if (isLarge) alert("This picture is too large.");
  });
  picture.src = drawing;
  send(isLarge ? "" : drawing);
}

clear();
pen.lineWidth = 40;
pen.lineCap = pen.lineJoin = "round";
