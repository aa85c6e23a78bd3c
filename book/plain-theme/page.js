"use strict";
// What a page can do beyond being read: dark or light, copy code, search, and show where one
// is. Everything works from a folder without a server, and the pages read well without it.

(() => {
  const stored = (key, value) => {
    try {
      if (value === undefined) return localStorage.getItem(key);
      localStorage.setItem(key, value);
    } catch {
      return null; // a browser that keeps nothing for pages in a folder
    }
  };
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // Dark or light: as the system says, until somebody chooses.
  const html = document.documentElement;
  if (stored("theme")) html.dataset.theme = stored("theme");
  const dark = () =>
    (html.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  document.addEventListener("DOMContentLoaded", () => {
    const tools = make("div", { class: "tools" });
    document.querySelector("header").append(tools);

    const theme = make("button", { type: "button" });
    const name = () => (theme.textContent = dark() ? "Light" : "Dark");
    theme.addEventListener("click", () => {
      html.dataset.theme = dark() ? "light" : "dark";
      stored("theme", html.dataset.theme);
      name();
    });
    name();

    // Copy: what a cell holds, without the folded answer.
    for (const code of document.querySelectorAll("main .code")) {
      const copy = make("button", { type: "button", class: "copy" }, "Copy");
      copy.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(code.querySelector("pre").textContent);
          copy.textContent = "Copied";
        } catch {
          copy.textContent = "Not allowed here";
        }
        setTimeout(() => (copy.textContent = "Copy"), 1500);
      });
      code.append(copy);
    }

    // What is wider than the page scrolls by keyboard, too; the rest is no stop for Tab.
    const reachable = () => {
      for (const pre of document.querySelectorAll("main pre"))
        if (pre.scrollWidth > pre.clientWidth) pre.tabIndex = 0;
        else pre.removeAttribute("tabindex");
    };
    reachable();
    addEventListener("resize", reachable);
    addEventListener("toggle", reachable, true);

    // The section that is being read.
    const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.hash.slice(1), a]));
    const mark = () => {
      const above = [...links.keys()].filter((id) => {
        const heading = document.getElementById(id);
        return heading && heading.getBoundingClientRect().top < innerHeight / 3;
      });
      for (const [id, link] of links)
        if (id === above.at(-1)) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
    };
    let waiting = 0;
    addEventListener("scroll", () => (waiting ||= requestAnimationFrame(() => ((waiting = 0), mark()))), { passive: true });
    mark();

    // Search: the index is a script of its own, read when somebody asks.
    const field = make("input", { type: "search", "aria-label": "Search the book", placeholder: "Search the book" });
    const list = make("ol", {}), note = make("p", { role: "status" });
    const close = make("button", { type: "button" }, "Close");
    const box = make("dialog", { class: "search", "aria-label": "Search" }, make("div", {}, field, close), note, list);
    document.body.append(box);
    close.addEventListener("click", () => box.close());
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = words.length ? ranked(words).slice(0, 20) : [];
      note.textContent = words.length ? (found.length ? `${found.length} of the best places` : "Nothing found.") : "";
      list.replaceChildren(
        ...found.map(({ address, page, heading, text }) =>
          make("li", {}, make("a", { href: address }, heading === page ? page : `${page}: ${heading}`), make("p", {}, ...excerpt(text, words))),
        ),
      );
    });
    list.addEventListener("click", () => box.close());
    const open = () => {
      if (typeof SEARCH === "undefined") {
        const script = make("script", { src: "search.js" });
        script.addEventListener("load", () => field.dispatchEvent(new Event("input")));
        document.head.append(script);
      }
      box.showModal();
      field.focus();
    };
    const search = make("button", { type: "button", "aria-keyshortcuts": "/" }, "Search");
    search.addEventListener("click", open);
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input, textarea, select, [contenteditable]");
      if (event.key !== "/" || typing || box.open) return;
      event.preventDefault();
      open();
    });
    tools.append(search, theme);
  });

  /** Sections that hold all words, those with them in a heading first. */
  function ranked(words) {
    if (typeof SEARCH === "undefined") return [];
    return SEARCH.map(([address, page, heading, text]) => {
      const title = `${page} ${heading}`.toLowerCase(), body = text.toLowerCase();
      let score = 0;
      for (const word of words) {
        const hits = body.split(word).length - 1, own = title.includes(word);
        if (!hits && !own) return null;
        score += Math.min(hits, 5) + (heading.toLowerCase().includes(word) ? 20 : own ? 5 : 0);
      }
      return { address, page, heading, text, score };
    })
      .filter(Boolean)
      .sort((a, b) => b.score - a.score);
  }

  /** Some words around the first hit, the hit marked. */
  function excerpt(text, words) {
    const at = Math.max(0, text.toLowerCase().indexOf(words[0])), from = Math.max(0, at - 60);
    const length = words[0].length;
    return [
      (from ? "… " : "") + text.slice(from, at),
      make("mark", {}, text.slice(at, at + length)),
      text.slice(at + length, at + 140) + (text.length > at + 140 ? " …" : ""),
    ];
  }
})();
