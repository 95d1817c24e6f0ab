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
  // A long signature is laid out as a list of descriptions that describe nothing; plain blocks look the same.
  for (const part of document.querySelectorAll(".sig dl, .sig dd")) {
    const block = document.createElement("div");
    block.className = part.tagName === "DD" ? "parameter" : "parameters";
    block.append(...part.childNodes);
    part.replaceWith(block);
  }
  // Three or four columns are too narrow to read on a phone: there the cells stand one below the other (gstalk.css), and
  // each says which column it is. Tables of figures have more columns; these scroll.
  for (const table of document.querySelectorAll("table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    if (heads.length === 3 || heads.length === 4) {
      table.classList.add("stacked");
      for (const row of table.tBodies[0].rows) {
        [...row.cells].forEach((cell, column) => {
          if (heads[column] && cell.textContent.trim()) {
            cell.dataset.label = heads[column];
          }
        });
      }
    }
  }
  // The page of the search has no heading.
  const results = document.getElementById("search-results");
  if (results && !document.querySelector("h1")) {
    const heading = document.createElement("h1");
    heading.textContent = "Search";
    results.before(heading);
  }
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
});
