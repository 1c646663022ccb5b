"""A headless Chromium driven by Debian's chromedriver, and small helpers to look at the page."""

import json
import os
import shutil
import tempfile
import time
import urllib.request

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FLAGS = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-dev-shm-usage", "--window-size=1280,800"]


def find(*names):
    """The first of these programs; says what to install where there is none."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise SystemExit(f"{names[0]} is missing: apt-get install chromium chromium-driver")


class Browser:
    """A fresh profile and one tab; closed by `with`."""

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix="opengrid-web-")
        options = webdriver.ChromeOptions()
        options.binary_location = find("chromium", "chromium-browser", "google-chrome")
        # Chromium's sandbox does not start as root, as in containers; the page is our own.
        for flag in FLAGS + [f"--user-data-dir={self.profile}"] + (["--no-sandbox"] if os.geteuid() == 0 else []):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(find("chromedriver")))
        self.driver.set_script_timeout(60)
        self.driver.set_page_load_timeout(60)
        return self

    def __exit__(self, *_):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def js(self, script, *arguments):
        """Runs the body of an async function; returns what it returns."""
        wrapped = ("const [args, done] = [[...arguments].slice(0, -1), arguments[arguments.length - 1]];"
                   f"(async () => {{ {script} }})().then((value) => done({{ value }}), (error) => done({{ error: String(error.stack ?? error) }}));")
        answer = self.driver.execute_async_script(wrapped, *arguments)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer.get("value")

    def emulate(self, width, height, dark=False, touch=False):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def problems(self):
        """Console messages since the last call that are warnings or worse."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def until(what, condition, seconds=20.0):
    """Waits for a true value and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


class Page:
    """What a person sees and does."""

    def __init__(self, browser, base):
        self.browser, self.driver, self.base = browser, browser.driver, base

    def open(self, view="chat"):
        self.driver.get("about:blank")
        self.driver.get(f"{self.base}/#{view}")
        until("the node's state in the bar", lambda: "peer" in self.text("#pill-text"))

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.browser.js("return document.querySelector(args[0])?.textContent ?? ''", selector)

    def settings(self, tokens, temperature="0", seed="7"):
        self.browser.js(
            """for (const [id, value] of Object.entries(args[0])) {
                 const field = document.getElementById(id);
                 field.value = value;
                 field.dispatchEvent(new Event("input", { bubbles: true }));
               }""", {"tokens": str(tokens), "temperature": temperature, "seed": seed})

    def say(self, text):
        until("a model to choose", lambda: self.one("#model").is_enabled())
        self.one("#prompt").send_keys(text, Keys.ENTER)

    def answer(self):
        return self.text(".turn.answer:last-child .text")

    def wait_for_end(self, seconds=60):
        until("the end of the answer", lambda: self.one("#stop").get_attribute("hidden") is not None, seconds)

    def record_requests(self):
        """Keeps the bodies that the page posts from now on."""
        self.browser.js("""if (window.posted) { window.posted.length = 0; return; }
            window.posted = [];
            const original = window.fetch;
            window.fetch = (path, options = {}) => {
              if (options.method === "POST") window.posted.push(JSON.parse(options.body));
              return original(path, options);
            };""")

    def problems(self):
        """What the console complains of since the last call."""
        return self.browser.problems()

    def posted(self):
        return self.browser.js("return window.posted")


def api(base, path, body=None):
    """JSON of the gateway, asked as a local program."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)
