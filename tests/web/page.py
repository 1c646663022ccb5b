#!/usr/bin/env python3
"""The web page in a real browser, against a running node whose grid serves a model.

    python tests/web/page.py http://127.0.0.1:8470

Then `key_checks`, against a node that they start themselves. Prints a line per check and `N passed, N failed`; exits 1
when one failed. Needs chromium and chromium-driver.
"""

import sys
import time
import traceback

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import key_checks
from browser import Browser, Page, api, until

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@check
def loads_only_its_own_files_under_a_strict_policy(page):
    page.open()
    policy = page.browser.js("return (await fetch('/')).headers.get('content-security-policy')")
    assert policy and ("script-src 'self'" in policy or "default-src 'self'" in policy), policy
    assert "*" not in policy and "unsafe" not in policy, policy
    names = page.browser.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert any(name.endswith("/style.css") for name in names), names
    foreign = [name for name in names if not name.startswith(page.base + "/")]
    assert not foreign, foreign


@check
def offers_the_models_that_can_answer(page):
    page.open()
    expected = sorted(model["id"] for model in api(page.base, "/v1/models")["data"] if model["task"] == "generation")
    assert expected, "the grid under test serves no model"
    shown = until("models", lambda: [o.text for o in page.all("#model option")] if page.one("#model").is_enabled() else None)
    assert sorted(shown) == expected, (shown, expected)


@check
def an_answer_streams_and_names_its_worker_and_speed(page):
    page.open()
    page.settings(tokens=60)
    page.browser.js("""window.lengths = [];
        new MutationObserver(() => {
          const length = document.querySelector(".turn.answer .text")?.textContent.length ?? 0;
          if (length !== window.lengths.at(-1)) window.lengths.push(length);
        }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });""")
    page.say("Tell me about the sea.")
    until("the stop button", lambda: page.one("#stop").is_displayed())
    assert not page.one("#send").is_displayed()
    page.wait_for_end()
    lengths = page.browser.js("return window.lengths")
    assert len([length for length in lengths if length > 0]) >= 5, f"it came in too few steps: {lengths}"
    assert lengths[-1] == len(page.answer()), lengths
    note = page.text(".turn.answer .note")
    assert "tok/s" in note and "tokens" in note, note
    worker = page.one(".turn.answer .worker").get_attribute("title").removeprefix("worker ")
    known = [peer["peer_id"] for peer in api(page.base, "/grid/v1/peers")] + [api(page.base, "/grid/v1/status")["peer_id"]]
    assert worker in known, (worker, known)
    assert worker[-8:] in note, note


@check
def the_next_question_carries_the_conversation_unchanged(page):
    page.open()
    page.settings(tokens=24)
    page.record_requests()
    page.say("Name three colours.")
    page.wait_for_end()
    page.say("And three animals?")
    page.wait_for_end()
    first, second = page.posted()
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    direct = api(page.base, "/v1/chat/completions", {**first, "messages": first["messages"][:1], "stream": False, "stream_options": None})
    assert second["messages"][1]["content"] == direct["choices"][0]["message"]["content"]
    assert (first["temperature"], first["max_tokens"], first["seed"]) == (0, 24, 7), first


@check
def shift_enter_makes_a_line_and_enter_sends(page):
    page.open()
    page.settings(tokens=4)
    page.record_requests()
    until("a model", lambda: page.one("#model").is_enabled())
    field = page.one("#prompt")
    field.send_keys("one")
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).send_keys("two").perform()
    assert field.get_attribute("value") == "one\ntwo"
    assert page.posted() == []
    field.send_keys(Keys.ENTER)
    page.wait_for_end()
    assert page.posted()[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    field.send_keys("   ", Keys.ENTER)
    assert len(page.posted()) == 1, "a blank message was sent"


@check
def escape_stops_and_the_chat_goes_on(page):
    page.open()
    page.settings(tokens=1500, temperature="1")
    page.say("Write a very long story about a lighthouse, with many chapters.")
    until("the first words", lambda: len(page.answer()) > 10)
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait_for_end(5)
    stopped = page.answer()
    assert "stopped" in page.text(".turn.answer .note"), page.text(".turn.answer .note")
    time.sleep(1)
    assert page.answer() == stopped, "it grew after the stop"
    page.settings(tokens=8)
    page.say("Thank you.")
    page.wait_for_end()
    assert len(page.all(".turn.answer")) == 2 and page.answer()
    page.one("#fresh").click()
    assert not page.all(".turn") and page.one("#welcome").is_displayed()


@check
def errors_are_sentences_with_a_way_on(page):
    page.open()
    page.settings(tokens=8)
    until("a model", lambda: page.one("#model").is_enabled())
    page.browser.problems()
    page.browser.js("""const original = window.fetch;
        window.fetch = (path, options = {}) => {
          window.fetch = original;
          return original(path, { ...options, body: options.body.replace(/"model":"[^"]*"/, '"model":"no-such-model"') });
        };""")
    page.say("Hello.")
    page.wait_for_end()
    problem = page.one(".problem")
    assert "no-such-model" in problem.text, problem.text
    assert problem.get_attribute("role") == "alert"
    expected = [message for message in page.browser.problems() if "404" not in message]
    assert not expected, expected
    problem.find_element(By.TAG_NAME, "button").click()
    until("the second try", lambda: not page.all(".problem") and page.answer())
    page.wait_for_end()


@check
def my_node_shows_what_the_api_says(page):
    page.open("node")
    status = api(page.base, "/grid/v1/status")
    text = until("the node", lambda: page.one("#node-body").text if status["peer_id"] in page.text("#node-body") else None)
    assert status["version"] in text
    assert status["invite"] in text
    for address in status["p2p_addresses"][:16]:
        assert address in text, address
    assert f"{page.base}/v1" in text
    cards = [card.text for card in page.all(".card.model h3")]
    assert sorted(cards) == sorted(model["id"] for model in status["models"])
    assert page.one("#pill").get_attribute("data-tone") in ("good", "wait")


@check
def network_shows_every_peer_and_model_live(page):
    page.open("network")
    peers, models = api(page.base, "/grid/v1/peers"), api(page.base, "/grid/v1/models")
    assert peers, "the node under test has no peers"
    until("the peers", lambda: len(page.all("[aria-label=Peers] tbody tr")) == len(peers))
    shown = {row.text for row in page.all("[aria-label=Peers] tbody tr th code")}
    assert shown == {peer["peer_id"][-8:] for peer in peers}, shown
    drawn = page.browser.js("return [...document.querySelectorAll('.graph .peer title')].map((title) => title.textContent.split('\\n')[0])")
    assert set(drawn) == {peer["peer_id"] for peer in peers} | {api(page.base, "/grid/v1/status")["peer_id"]}, drawn
    connected = sum(1 for peer in peers if peer["connected"] and peer["path"] != "none")
    assert len(page.all(".graph .edge")) == connected
    table = page.text("[aria-label=Models] tbody")
    for model in models[:100]:
        assert model["id"] in table
        if not model["workers"]:
            assert f"opengrid up --serve {model['id']}" in table
    names = page.browser.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    polled = [name for name in names if name.endswith("/grid/v1/status")]
    assert not polled, "the page polls although there are events"


@check
def the_keyboard_reaches_everything(page):
    page.open("network")
    page.browser.js("document.querySelector('.skip').focus()")
    until("the skip link in sight", lambda: page.one(".skip").rect["y"] >= 0)
    seen = []
    for _ in range(12):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        if page.browser.js("return document.activeElement === document.body"):
            break
        seen.append(page.browser.js("""const e = document.activeElement, style = getComputedStyle(e);
            return { name: e.className || e.id || e.textContent.trim().slice(0, 20), view: e.dataset?.view ?? null,
                     outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 }"""))
    assert len(seen) >= 4 and seen[0]["name"] == "brand", seen
    views = [stop["view"] for stop in seen if stop["view"]]
    assert views[:3] == ["chat", "node", "network"], seen
    unseen = [stop["name"] for stop in seen if not stop["outline"]]
    assert not unseen, f"focus cannot be seen on {unseen}"
    page.one("nav a[data-view=node]").send_keys(Keys.ENTER)
    until("my node", lambda: page.one("#node").is_displayed() and not page.one("#network").is_displayed())
    assert page.one("nav a[data-view=node]").get_attribute("aria-current") == "page"


@check
def every_control_has_a_name(page):
    page.open()
    nameless = page.browser.js("""return [...document.querySelectorAll("button, input, select, textarea, summary, [role=img], a")]
        .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim() || e.title))
        .map((e) => e.outerHTML.slice(0, 100))""")
    assert not nameless, nameless


WIDTHS = """const wide = (e) => e && e.scrollWidth > e.clientWidth + 1;
    return [["page", document.documentElement], ["main", document.getElementById("main")], ["log", document.getElementById("log")]]
      .filter(([, e]) => wide(e)).map(([name, e]) => `${name}: ${e.scrollWidth} > ${e.clientWidth}`)"""


@check
def narrow_screens_need_no_sideways_scrolling(page):
    for width in (320, 375, 768):
        page.browser.emulate(width, 640, touch=width < 500)
        for view in ("chat", "node", "network"):
            page.open(view)
            time.sleep(0.3)
            too_wide = page.browser.js(WIDTHS)
            assert not too_wide, (width, view, too_wide)
        page.open("chat")
        page.browser.js("""const { render } = await import("/js/markdown.js");
            const text = document.createElement("div");
            text.className = "text prose";
            document.getElementById("log").append(text);
            render(text, "x".repeat(3000) + "\\n\\n```\\n" + "y".repeat(3000) + "\\n```\\n\\n- `" + "z".repeat(3000) + "`");""")
        too_wide = page.browser.js(WIDTHS)
        assert not too_wide, (width, "long words", too_wide)
        assert page.one("#prompt").is_displayed() and page.one("#send").is_displayed()


CONTRAST = """const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = (text) => rgb(text).map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return "rgb(255,255,255)"; };
    const ratio = (e) => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); };
    return [...document.querySelectorAll("h1, h2, p, dd, dt, th, td, code, .chip, nav a, button:not(:disabled), summary")]
      .filter((e) => e.offsetParent && e.textContent.trim()).map((e) => [ratio(e), e.className || e.tagName, e.textContent.trim().slice(0, 20)])
      .filter(([r]) => r < 4.5)"""


@check
def light_and_dark_can_be_read(page):
    grounds = []
    for dark in (False, True):
        page.browser.emulate(1280, 800, dark=dark)
        for view in ("chat", "node", "network"):
            page.open(view)
            time.sleep(0.3)
            faint = page.browser.js(CONTRAST)
            assert not faint, (dark, view, faint)
        grounds.append(page.browser.js("return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1], grounds


@check
def answers_are_text_never_markup(page):
    page.open()
    found = page.browser.js("""const { render } = await import("/js/markdown.js");
        const hostile = ['<img src=x onerror="window.hacked=1">', "<script>window.hacked=1</script>", "[a](javascript:window.hacked=1)",
          '[b](https://x.example/"onmouseover="window.hacked=1)', "```<b>\\n<svg onload=window.hacked=1>\\n```", "# <iframe src=x>",
          "- <style>*{display:none}</style>", "> <a href='data:text/html,x'>y</a>", "**<u>x</u>**", "[c](https://good.example/a)"].join("\\n\\n");
        const target = document.createElement("div");
        document.body.append(target);
        // As a stream would: every prefix.
        for (let end = 1; end <= hostile.length; end += 1) render(target, hostile.slice(0, end));
        await new Promise((resolve) => setTimeout(resolve, 200));
        const tags = [...new Set([...target.querySelectorAll("*")].map((e) => e.tagName.toLowerCase()))];
        const links = [...target.querySelectorAll("a")].map((a) => a.href);
        const whole = document.createElement("div");
        render(whole, hostile);
        const same = whole.innerHTML === target.innerHTML;
        target.remove();
        return { tags, links, same, hacked: window.hacked ?? null }""")
    allowed = {"p", "div", "span", "button", "pre", "code", "h3", "ul", "li", "blockquote", "strong", "a", "br"}
    assert set(found["tags"]) <= allowed, found
    assert found["links"] == ["https://good.example/a"], found
    assert found["hacked"] is None and found["same"], found


@check
def endless_answers_stay_quick(page):
    page.open()
    slow = page.browser.js("""const { render } = await import("/js/markdown.js");
        const pieces = ["*", "_", "`", "[", "**a ", "[x](", "> ", "- ", "1. ", "```\\n", "# ", "a ", "\\n\\n", "_a*b`c[d"];
        const times = [];
        for (const piece of pieces) {
          const target = document.createElement("div");
          const start = performance.now();
          render(target, piece.repeat(Math.ceil(100000 / piece.length)));
          times.push([piece, performance.now() - start]);
        }
        return times.filter(([, ms]) => ms > 3000)""")
    assert not slow, slow


@check
def events_survive_any_split(page):
    page.open()
    wrong = page.browser.js("""const { events } = await import("/js/http.js");
        const source = ': hi\\n\\ndata: {"a":"é\\u{1F30D}"}\\n\\ndata:one\\r\\ndata: two\\r\\n\\r\\nevent: x\\ndata: [DONE]\\n\\n';
        const bytes = new TextEncoder().encode(source);
        const wanted = JSON.stringify([null, '{"a":"é\\u{1F30D}"}', "one\\ntwo", "[DONE]"]);
        const wrong = [];
        for (let cut = 1; cut < bytes.length; cut += 1) {
          const stream = new ReadableStream({ start(c) { c.enqueue(bytes.slice(0, cut)); c.enqueue(bytes.slice(cut)); c.close(); } });
          const got = [];
          for await (const data of events(new Response(stream))) got.push(data);
          if (JSON.stringify(got) !== wanted) wrong.push([cut, got]);
        }
        return wrong""")
    assert not wrong, wrong[:3]


@check
def hostile_peers_cannot_break_the_page(page):
    page.open("network")
    found = page.browser.js("""const [{ showNetwork }, { showNode }] = [await import("/js/network.js"), await import("/js/node.js")];
        const evil = '<img src=x onerror="window.hacked=1">\\u202egnp' + "A".repeat(400);
        const odd = [null, undefined, -1, 1e308, NaN, evil, {}, [], true];
        const model = (v) => ({ id: evil, class: v, slots: v, slots_busy: v, queued: v, decode_tokens_per_s: v, draining: v, state: v,
          context_tokens: v, prefill_tokens_per_s: v, memory_bytes: v });
        for (const v of odd) {
          const status = { peer_id: v, version: v, uptime_seconds: v, role: v, models: [model(v)], peers: v, state: v, api: v, p2p_addresses: v,
            nat: v, invite: v, sessions_running: v, tokens_generated: v };
          const peers = [...Array(300)].map((_, i) => ({ peer_id: evil.slice(0, 60) + i, version: v, connected: v, path: v, addresses: v, rtt_ms: v,
            models: i % 2 ? v : [model(v), null] }));
          const models = [{ id: evil, size_bytes: v, licence: v, class: v, workers: v, local: v, context_tokens: v }];
          showNetwork({ status, peers, models });
          showNode({ status, peers, models });
        }
        await new Promise((resolve) => setTimeout(resolve, 200));
        return { hacked: window.hacked ?? null, images: document.querySelectorAll("main img").length,
                 rows: document.querySelectorAll("[aria-label=Peers] tbody tr").length }""")
    assert found["hacked"] is None and found["images"] == 0, found
    assert 0 < found["rows"] <= 200, found


def run(page, checks):
    """How many passed, and the names of those that failed."""
    passed, failed = 0, []
    for function in checks:
        name = function.__name__.replace("_", " ")
        page.browser.emulate(1280, 800)
        started = time.monotonic()
        try:
            function(page)
            if problems := page.problems():
                raise AssertionError(f"the console complains: {problems[:3]}")
        except Exception as error:
            failed.append(name)
            print(f"FAIL {name}: {type(error).__name__}: {str(error)[:1500]}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
            page.browser.problems()
        else:
            passed += 1
            print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
    return passed, failed


def main(base):
    with Browser() as browser:
        passed, failed = run(Page(browser, base), CHECKS)
        with key_checks.closed_page(browser) as page:
            more, wrong = run(page, key_checks.CHECKS)
    print(f"{passed + more} passed, {len(failed + wrong)} failed")
    return 1 if failed + wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1].rstrip("/")))
