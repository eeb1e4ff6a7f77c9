// What Gradio's page lacks: the arrow keys move between the tabs, and a picture can be pasted on the tab Upload.

() => {
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const tab = event.target.closest?.("[role=tab]");
    if (!step || !tab) return;
    const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")];
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    event.preventDefault();
    next.focus();
    next.click();
  });

  document.addEventListener("paste", (event) => {
    const picture = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
    const upload = document.querySelector("#upload");
    if (!picture || !upload?.offsetParent) return;   // the tab is not in sight
    event.preventDefault();
    const put = () => {
      const input = upload.querySelector("input[type=file]");
      if (!input) return false;
      const files = new DataTransfer();
      files.items.add(picture);
      input.files = files.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
      return true;
    };
    if (put()) return;
    upload.querySelector(".icon-button-wrapper button, button.icon-button")?.click();  // clears the last picture
    let turns = 0;
    const again = setInterval(() => {
      turns += 1;
      if (put() || turns === 50) clearInterval(again);
    }, 100);
  });
}
