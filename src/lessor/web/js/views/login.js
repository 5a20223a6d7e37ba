// SPDX-License-Identifier: Apache-2.0
// Who are you? The password goes to the server and is forgotten; the token stays in memory.

import { field, h, replace } from "../dom.js";
import { login } from "../session.js";
import { t } from "../words.js";

export function loginView(root, { expired, onlogin }) {
  const user = h("input", { type: "text", name: "username", autocomplete: "username", required: true, autocapitalize: "none", spellcheck: "false" });
  const password = h("input", { type: "password", name: "password", autocomplete: "current-password", required: true });
  const problem = h("p", { class: "problem", role: "alert", hidden: !expired }, expired ? t("Your login has expired. Log in again.") : "");
  const go = h("button", { type: "submit", class: "primary" }, t("Log in"));
  const form = h("form", { class: "login panel" },
    h("h1", {}, t("Log in")),
    h("p", { class: "hint" }, t("This server asks who you are. A reload of the page asks again.")),
    field(t("User"), user), field(t("Password"), password), problem, go);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    problem.hidden = true;
    try {
      await login(user.value, password.value);
      onlogin();
    } catch (error) {
      problem.hidden = false;
      problem.textContent = error.offline ? error.text : t("The server refuses this: {why}", { why: error.message });
      password.value = "";
      password.focus();
    } finally {
      go.disabled = false;
    }
  });
  replace(root, form);
  user.focus();
  return () => {};
}
