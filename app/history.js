// The list of drawings. A chosen label is sent to the server, and shown once it is saved. Deleting takes two clicks.

const find = (name) => element.querySelector(name), all = (name) => [...element.querySelectorAll(name)];

function settle() {        // Gradio reuses cards for other drawings, but keeps what was chosen in them
  for (const select of all(".card select")) select.value = select.dataset.value;
  for (const box of all("input")) box.checked = false;
  for (const button of all("button.sure")) calm(button);
  find(".none").hidden = all(".card").length > 0;
  find(".selection").hidden = !find(".none").hidden;
  choose();
}

function nameDays() {      // for screen readers: Gradio's date fields have no names
  for (const day of document.querySelectorAll(".day")) {
    const name = day.querySelector("span").textContent.trim();
    day.querySelector("input").setAttribute("aria-label", name);
    day.querySelector("button").setAttribute("aria-label", `${name}: choose a day`);
  }
}

const number = (card) => Number(card.dataset.id);
const chosen = () => all(".card").filter((card) => card.querySelector("input").checked).map(number);

function choose() {        // after a change of what is selected
  const count = chosen().length, boxes = all(".card input").length;
  find(".chosen").textContent = count ? `${count} selected` : "none selected";
  find(".all").checked = count > 0 && count === boxes;
  find(".all").indeterminate = count > 0 && count < boxes;
  find(".label-all").value = "-";
  for (const control of [find(".label-all"), find(".delete-all")]) control.disabled = !count;
  calm(find(".delete-all"));
}

function calm(button) {
  button.classList.remove("sure");
  button.textContent = button.matches(".delete-all") ? "Delete selected" : "Delete";
}

element.addEventListener("change", ({ target }) => {
  if (target.matches(".all")) for (const box of all(".card input")) box.checked = target.checked;
  if (target.matches("input")) return choose();
  const label = target.value;
  if (target.matches(".label-all")) {
    if (label !== "-") trigger("input", { ids: chosen(), label });
    return;
  }
  target.value = target.dataset.value;               // the new label is shown once it is saved
  trigger("input", { ids: [number(target.closest(".card"))], label });
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
  const ids = button.matches(".delete-all") ? chosen() : [number(button.closest(".card"))];
  calm(button);
  trigger("delete", { ids });
});

watch("value", settle);
settle();
requestAnimationFrame(nameDays);
