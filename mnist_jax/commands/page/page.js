// Sends what is drawn to the server as an image file, and shows the answer.
const INTERVAL = 150; // ms between two requests while the user draws
const MAX_BYTES = 8e6; // the server refuses larger files
const HINT = "Draw a digit, or choose a picture of one.";

const canvas = document.querySelector("canvas");
const chooser = document.querySelector("input");
const pen = canvas.getContext("2d");
let isPicture = false; // a chosen picture is cleared by the next stroke
let timer = null;

// Requests. While one is running, only the newest drawing or picture waits.

let isBusy = false;
let waiting; // undefined: nothing waits

// Sends the canvas or a file; null stands for an empty canvas.
async function send(source) {
  waiting = source;
  if (isBusy) return;
  isBusy = true;
  while (waiting !== undefined) {
    const next = waiting;
    waiting = undefined;
    const answer = next ? await ask(next) : { hint: HINT };
    if (waiting === undefined) show(answer);
  }
  isBusy = false;
}

async function ask(source) {
  const file = source === canvas ? await encode(canvas) : source;
  if (file.size > MAX_BYTES) return { hint: "This picture is too large." };
  try {
    const response = await fetch("answer", { method: "POST", body: file });
    return response.ok ? await response.json() : { hint: await response.text() };
  } catch {
    return { hint: "The server does not answer." };
  }
}

async function encode(canvas) {
  const response = await fetch(canvas.toDataURL()); // toBlob may wait a second for an idle moment
  return response.blob();
}

function show({ digit, probabilities = Array(10).fill(0), seen, hint }) {
  const text = document.querySelector(".answer p");
  text.className = hint ? "hint" : "digit";
  text.textContent = hint || digit;
  const image = seen ? document.createElement("img") : document.createElement("div");
  image.className = "seen";
  if (seen) Object.assign(image, { src: seen, alt: "The digit in 28 x 28 pixels" });
  document.querySelector(".seen").replaceWith(image);
  document.querySelector(".answer ol").innerHTML = probabilities.map((p, i) => `
    <li class="${!hint && i === digit ? "likeliest" : ""}">
      <span>${i}</span>
      <div><div style="width: ${100 * p}%"></div></div>
      <span>${(100 * p).toFixed(1)} %</span>
    </li>`).join("");
}

// Drawing.

function clear() {
  clearTimeout(timer);
  timer = null;
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  isPicture = false;
}

function drawTo(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  pen.lineTo(x, y);
  pen.lineTo(x + 0.01, y); // a line without length, from a click, would not be drawn
  pen.stroke();
  timer ??= setTimeout(sendDrawing, INTERVAL);
}

function sendDrawing() {
  timer = null;
  send(canvas);
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId); // a stroke may leave the canvas and come back
  if (isPicture) clear();
  pen.beginPath();
  drawTo(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (event.isPrimary && canvas.hasPointerCapture(event.pointerId)) drawTo(event);
});

document.querySelector("button").addEventListener("click", () => {
  clear();
  send(null);
});

// Pictures.

chooser.addEventListener("change", () => {
  if (chooser.files.length) showAndSend(chooser.files[0]);
  chooser.value = ""; // so that the same file can be chosen again
});

// Sends a picture as the browser shows it, no larger than the canvas. If the browser cannot show
// or convert it, the server may still be able to read it.
async function showAndSend(file) {
  clear();
  const picture = new Image();
  picture.src = URL.createObjectURL(file);
  let converted = file;
  try {
    await picture.decode();
    const fit = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    converted = await encode(scale(picture, Math.min(1, fit))); // fails for an SVG with HTML in it
    const [width, height] = [picture.width * fit, picture.height * fit];
    isPicture = true;
    pen.fillStyle = "#aaa"; // on grey, both black and white drawings are visible
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  } catch {}
  URL.revokeObjectURL(picture.src);
  send(converted);
}

function scale(picture, factor) {
  const scaled = document.createElement("canvas");
  scaled.width = Math.max(1, Math.round(picture.width * factor));
  scaled.height = Math.max(1, Math.round(picture.height * factor));
  const context = scaled.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, scaled.width, scaled.height);
  return scaled;
}

clear();
pen.lineWidth = 40;
pen.lineCap = pen.lineJoin = "round";
show({ hint: HINT });
