/* What the theme leaves out for people who don't use a mouse, or don't see the page. */
document.addEventListener("DOMContentLoaded", () => {
  // A table or a block of code that is wider than the page scrolls: let the keyboard do that, too.
  for (const box of document.querySelectorAll(".table-wrapper, .highlight pre")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    }
  }
  // Captions of the table of contents say that they are headings, but not of which level; its frames have no names.
  for (const caption of document.querySelectorAll('.caption[role="heading"]')) {
    caption.setAttribute("aria-level", "2");
  }
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
});
