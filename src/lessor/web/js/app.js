// SPDX-License-Identifier: Apache-2.0
// The frame: which view is shown, who is logged in, language and colours, whether the server answers.
//
// A view is a function (root, arguments) that fills `root` and returns a function that ends it.

import { events as apiEvents, page } from "./api.js";
import { h, note, replace, setText } from "./dom.js";
import { feed } from "./feed.js";
import { samples, troubles } from "./samples.js";
import { look, logout, session } from "./session.js";
import { chooseLanguage, currentLanguage, LANGUAGES, t, word } from "./words.js";
import { loginView } from "./views/login.js";
import { leasesView } from "./views/leases.js";
import { leaseView } from "./views/lease.js";
import { keysView } from "./views/keys.js";
import { keyView } from "./views/key.js";
import { locksView } from "./views/locks.js";
import { liveView } from "./views/live.js";
import { healthView } from "./views/health.js";

const VIEWS = { leases: leasesView, lease: leaseView, keys: keysView, key: keyView, locks: locksView, live: liveView, health: healthView };
// In the menu: the view, its name, the letter behind "g" that opens it.
const MENU = [
  ["leases", word("Leases"), "l"], ["keys", word("Keys"), "k"], ["locks", word("Locks"), "o"], ["live", word("Live"), "w"], ["health", word("Health"), "h"],
];
const OF_MENU = { lease: "leases", key: "keys" };
const THEMES = [["", word("Auto")], ["light", word("Light")], ["dark", word("Dark")]];

// What a browser remembers of the page: how it looks, and nothing else.
const remembered = (name) => {
  try {
    return localStorage.getItem(`lessor.${name}`) ?? "";
  } catch {
    return "";
  }
};
const remember = (name, value) => {
  try {
    localStorage.setItem(`lessor.${name}`, value);
  } catch {
    // A browser that keeps nothing shows the page all the same.
  }
};

let endView = () => {};
let main;
let nav;
let banner;
let dot;
let linked = true;
let version = "";

function place() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { name: name in VIEWS ? name : "leases", rest };
}

function show() {
  endView();
  endView = () => {};
  replace(main);
  const needsLogin = session.auth && !session.user;
  nav.hidden = needsLogin;
  drawFrame();
  if (needsLogin) {
    endView = loginView(main, { expired: expired(), onlogin: () => {
      frame();
      begin();
    } });
    return;
  }
  const { name, rest } = place();
  for (const link of nav.querySelectorAll("a[data-view]")) {
    if (link.dataset.view === (OF_MENU[name] ?? name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  endView = VIEWS[name](main, rest) ?? (() => {});
  document.title = `${main.querySelector("h1")?.textContent ?? "Lessor"} – Lessor`;
  main.focus({ preventScroll: true });
}

let tokenExpired = false;
const expired = () => {
  const was = tokenExpired;
  tokenExpired = false;
  return was;
};

function begin() {
  feed.start();
  samples.start();
  show();
}

function end() {
  feed.stop();
  logout();
  frame();
  show();
}

function drawFrame() {
  document.body.classList.toggle("offline", !linked);
  dot.className = `dot ${linked ? "ok" : "bad"}`;
  setText(dot.nextSibling, linked ? t("Connected") : t("No answer"));
  const lines = linked ? troubles(samples) : [["bad", word("The server does not answer. The page tries again by itself."), {}]];
  const text = lines.map(([, line, values]) => t(line, values)).join(" ");
  banner.hidden = !text;
  setText(banner, text);
}

function preferences() {
  const language = h("select", { "aria-label": t("Language"), onchange: (event) => {
    remember("language", event.target.value);
    chooseLanguage(event.target.value);
    frame();
    show();
  } }, LANGUAGES.map(([value, label]) => h("option", { value, props: { selected: value === currentLanguage() } }, label)));
  const theme = h("select", { "aria-label": t("Colours"), onchange: (event) => {
    remember("theme", event.target.value);
    colours(event.target.value);
  } }, THEMES.map(([value, label]) => h("option", { value, props: { selected: value === remembered("theme") } }, t(label))));
  return [language, theme];
}

function colours(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  window.dispatchEvent(new Event("lessor-colours"));
}

function frame() {
  main = h("main", { id: "main", tabindex: "-1" });
  banner = h("div", { class: "banner", role: "alert", hidden: true });
  dot = h("span", { class: "dot ok", "aria-hidden": "true" });
  nav = h("nav", { "aria-label": t("Views") },
    MENU.map(([view, label, letter]) => h("a", { href: `#/${view}`, "data-view": view, title: `g ${letter}` }, t(label))));
  const user = session.user
    ? h("div", { class: "user" }, h("span", { title: t("Logged in") }, session.user), h("button", { type: "button", onclick: end }, t("Log out")))
    : null;
  replace(document.getElementById("app"),
    h("a", { class: "skip", href: "#main", onclick: (event) => {
      event.preventDefault();
      main.focus();
    } }, t("Skip to the content")),
    h("header", { class: "side" },
      h("a", { class: "brand", href: "#/leases" }, h("img", { src: "icon.svg", alt: "", width: "22", height: "22" }), "Lessor"),
      nav,
      h("div", { class: "foot" },
        h("div", { class: "state", role: "status" }, dot, h("span", {}, "")),
        user,
        h("div", { class: "preferences" }, preferences()),
        h("div", { class: "small" }, version && `etcd API ${version}`, " ", h("button", { type: "button", class: "link", onclick: help }, t("Keyboard"))))),
    h("div", { class: "content" }, banner, main));
}

function help() {
  const keys = [
    ["g l · g k · g o · g w · g h", t("Leases, keys, locks, live events, health")],
    ["/", t("To the filter")],
    ["↑ ↓ Page Up Page Down Home End", t("Through a table")],
    ["Enter", t("Open the row")],
    ["c · d", t("Copy a lease's ID: hexadecimal, decimal")],
    ["Esc", t("Close a dialog")],
  ];
  const dialog = h("dialog", { "aria-labelledby": "help-title" },
    h("form", { method: "dialog" }, h("h2", { id: "help-title" }, t("Keyboard")),
      h("dl", { class: "keys-help" }, keys.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
      h("div", { class: "dialog-buttons" }, h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, t("Close")))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

let prefix = 0;
function shortcut(event) {
  if (event.target.closest?.("input, textarea, select, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  const afterG = performance.now() - prefix < 1500;
  prefix = 0;
  if (event.key === "g") prefix = performance.now();
  else if (event.key === "?") help();
  else if (event.key === "/") {
    const filter = main.querySelector("input[type=search]");
    if (!filter) return;
    event.preventDefault();
    filter.focus();
  } else if (afterG) {
    const found = MENU.find(([, , letter]) => letter === event.key);
    if (found) location.hash = `#/${found[0]}`;
  }
}

apiEvents.addEventListener("link", (event) => {
  linked = event.detail;
  drawFrame();
});
apiEvents.addEventListener("login", (event) => {
  if (session.auth && !session.user) return; // the view that asks is there already
  tokenExpired = event.detail;
  feed.stop();
  logout();
  session.auth = true;
  frame();
  show();
});
samples.addEventListener("sample", drawFrame);
window.addEventListener("hashchange", () => show());
document.addEventListener("keydown", shortcut);

async function start() {
  chooseLanguage(remembered("language") || (navigator.language.startsWith("zh") ? "zh" : "en"));
  colours(remembered("theme"));
  for (;;) {
    frame();
    drawFrame();
    try {
      await look();
      break;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  version = JSON.parse((await page("version")) || "{}").etcdserver ?? "";
  frame();
  if (session.auth) show();
  else begin();
}

start().catch((error) => note(String(error), "bad"));
