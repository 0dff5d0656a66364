"use strict";
(() => {
  const LOOK_AGAIN = 2000; // milliseconds
  const says = JSON.parse(document.getElementById("sentences").content.textContent);
  const [progress, bar, said, download, ask] = ["progress", "bar", "said", "download", "ask"].map((id) =>
    document.getElementById(id),
  );

  const show = (text, { bad = false, percent = null, url = null, mayAsk = false } = {}) => {
    said.textContent = text;
    said.classList.toggle("bad", bad);
    progress.hidden = percent === null;
    bar.value = percent || 0;
    download.hidden = url === null;
    if (url !== null) download.href = url;
    ask.hidden = !mayAsk;
  };

  const judge = (status, told) => {
    if (status === 401) return show(says.log_in, { bad: true });
    if (status === 404) return show("", { mayAsk: true });
    if (status >= 400) return show(says[told.code] || says.failed, { bad: true, mayAsk: status === 429 });
    if (told.job.state === "failed") return show(told.job.error || says.failed, { bad: true, mayAsk: true });
    if (told.job.state !== "done") {
      setTimeout(look, LOOK_AGAIN);
      return show(says.under_way, { percent: told.job.percent });
    }
    if (!told.file) return show(says.expired, { mayAsk: true });
    const until = new Date(told.file.expires_at).toLocaleDateString(document.documentElement.lang);
    // the address by which this page was reached is the one whose cookie we have
    return show(`${says.ready} ${until}.`, { url: new URL(told.file.download_url).pathname, mayAsk: true });
  };

  const request = async (method) => {
    try {
      const answer = await fetch("/auth/export", { method });
      judge(answer.status, await answer.json());
    } catch {
      show(says.failed, { bad: true, mayAsk: true });
    }
  };
  const look = () => request("GET");
  ask.addEventListener("click", async () => {
    ask.hidden = true;
    await request("POST");
  });
  look();
})();
