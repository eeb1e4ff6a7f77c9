// The list of drawings. A chosen label is sent to the server, and shown once it is saved. Deleting takes two clicks.

function settle() {        // Gradio reuses rows for other drawings, but keeps what was chosen in them
  for (const select of element.querySelectorAll("select")) select.value = select.dataset.value;
  for (const button of element.querySelectorAll("button.sure")) calm(button);
}

function nameDays() {      // for screen readers: Gradio's date fields have no names
  for (const day of document.querySelectorAll(".day")) {
    const name = day.querySelector("span").textContent.trim();
    day.querySelector("input").setAttribute("aria-label", name);
    day.querySelector("button").setAttribute("aria-label", `${name}: choose a day`);
  }
}

function calm(button) {
  button.classList.remove("sure");
  button.textContent = "Delete";
}

element.addEventListener("change", (event) => {
  if (!event.target.matches("select")) return;
  const label = event.target.value;
  event.target.value = event.target.dataset.value;  // the new label is shown once it is saved
  trigger("input", { id: Number(event.target.closest("tr").dataset.id), label });
});

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (!button.classList.contains("sure")) {
    button.classList.add("sure");
    button.textContent = "Sure?";
    setTimeout(() => calm(button), 4000);
    return;
  }
  calm(button);
  trigger("delete", { id: Number(button.closest("tr").dataset.id) });
});

watch("value", settle);
settle();
requestAnimationFrame(nameDays);
