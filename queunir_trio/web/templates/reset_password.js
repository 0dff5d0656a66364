"use strict";
(() => {
  const says = JSON.parse(document.getElementById("sentences").content.textContent);
  const [choose, ask, said, after] = ["choose", "ask", "said", "after"].map((id) => document.getElementById(id));
  // The link's secret leaves the address bar at once; the entry of the history keeps it, so that a reload still works.
  const token = new URLSearchParams(location.search).get("token") || (history.state && history.state.token);
  if (token) history.replaceState({ token }, "", location.pathname);
  (token ? choose : ask).hidden = false;

  const say = (text, bad) => {
    said.textContent = text;
    said.classList.toggle("bad", Boolean(bad));
  };

  const send = async (form, route, body, done) => {
    const button = form.querySelector("button");
    button.disabled = true;
    say("");
    try {
      const answer = await fetch(route, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      const told = await answer.json();
      if (!answer.ok) {
        say(says[told.code] || says.failed, true);
        if (told.code === "bad_token") {
          history.replaceState(null, "", location.pathname);
          choose.hidden = true;
          ask.hidden = false;
        }
        return;
      }
      form.hidden = true;
      history.replaceState(null, "", location.pathname);
      say(says[done]);
      after.hidden = false;
    } catch {
      say(says.failed, true);
    } finally {
      button.disabled = false;
    }
  };

  choose.addEventListener("submit", (event) => {
    event.preventDefault();
    const password = document.getElementById("password").value;
    send(choose, "/auth/reset-password", { token, password }, "chosen");
  });
  ask.addEventListener("submit", (event) => {
    event.preventDefault();
    send(ask, "/auth/forgot-password", { email: document.getElementById("email").value }, "asked");
  });
})();
