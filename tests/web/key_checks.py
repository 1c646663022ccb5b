"""The page before a gateway that asks for API keys, on a node of its own."""

import contextlib
import pathlib
import sys

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browser import Page, until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from grid import MODEL, Grid, run  # noqa: E402

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class ClosedPage(Page):
    def __init__(self, browser, node):
        super().__init__(browser, node.url)
        self.node = node

    def keys(self, *arguments):
        done = run("keys", *arguments, "--home", str(self.node.home), env=self.node.env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def visit(self, view="chat"):
        """As a browser that knows no key."""
        self.driver.get(f"{self.base}/favicon.svg")
        self.browser.js("sessionStorage.clear(); localStorage.clear()")
        self.reopen(view)

    def reopen(self, view="chat"):
        self.driver.get("about:blank")
        self.driver.get(f"{self.base}/#{view}")

    def wait_for_question(self):
        until("the question for a key", lambda: self.one("#key-dialog").is_displayed())

    def give(self, key, keep=False):
        self.wait_for_question()
        if keep:
            self.one("#key-keep").click()
        self.one("#key").send_keys(key, Keys.ENTER)

    def is_let_in(self):
        until("the node's state in the bar", lambda: "peer" in self.text("#pill-text"))
        assert not self.one("#key-dialog").is_displayed()

    def is_refused(self, why):
        until(f"the refusal: {why}", lambda: self.one("#key-dialog").is_displayed() and why in self.one("#key-problem").text)

    def stored(self):
        return self.browser.js("return [sessionStorage, localStorage].map((store) => store.getItem('opengrid-api-key'))")

    def problems(self):
        # The browser notes each refusal: they are what is tested.
        return [text for text in super().problems() if not ("401" in text or "403" in text)]


@contextlib.contextmanager
def closed_page(browser):
    with Grid(env={"OPENGRID_API_REQUIRE_KEY": "true"}) as grid:
        node = grid.add("closed", serve=MODEL)
        grid.wait_for_workers(1)
        yield ClosedPage(browser, node)


@check
def a_key_is_asked_for_and_kept_in_this_tab_only(page):
    key = page.keys("create", "tab", "--scope", "inference", "--scope", "read")
    page.visit()
    page.wait_for_question()
    assert page.browser.js("return document.activeElement.id") == "key"
    page.give(f"  {key} ")
    page.is_let_in()
    assert page.stored() == [key, None]
    page.settings(tokens=8)
    page.say("Hello.")
    page.wait_for_end()
    assert page.answer()
    page.reopen("node")
    page.is_let_in()
    assert "an API key of this gateway" in until("my node", lambda: page.one("#node-body").text)
    page.browser.js("sessionStorage.clear()")
    page.reopen()
    page.wait_for_question()


@check
def a_key_is_kept_in_the_browser_by_choice_until_it_is_forgotten(page):
    key = page.keys("create", "browser", "--scope", "inference", "--scope", "read")
    page.visit()
    page.give(key, keep=True)
    page.is_let_in()
    assert page.stored() == [None, key]
    page.driver.switch_to.new_window("tab")
    page.reopen()
    page.is_let_in()
    page.one("#key-button").click()
    page.wait_for_question()
    assert page.stored() == [None, None]
    page.driver.close()
    page.driver.switch_to.window(page.driver.window_handles[0])


@check
def a_wrong_key_is_told_from_none(page):
    page.visit()
    page.wait_for_question()
    assert not page.one("#key-problem").is_displayed()
    page.give("password")
    page.is_refused("does not know it")
    page.give("og-11111111")
    page.is_refused("mistyped")
    assert page.stored() == [None, None]
    key = page.keys("create", "late", "--scope", "inference", "--scope", "read")
    page.give(key)
    page.is_let_in()
    page.keys("revoke", "late")
    page.reopen()
    page.is_refused("revoked")
    page.one("#key").send_keys("ключ", Keys.ENTER)
    assert page.one("#key-dialog").is_displayed(), "sent what no header can carry"


@check
def who_closes_the_question_can_have_it_back(page):
    page.visit()
    page.wait_for_question()
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    until("the page", lambda: not page.one("#key-dialog").is_displayed())
    button = page.one("#key-button")
    assert button.text == "Enter key"
    button.click()
    page.give(page.keys("create", "second", "--scope", "inference", "--scope", "read"))
    page.is_let_in()


@check
def a_key_for_answers_alone_opens_the_chat_and_says_what_it_does_not(page):
    page.visit()
    page.give(page.keys("create", "answers"))
    until("the state", lambda: "chat only" in page.text("#pill-text"))
    page.settings(tokens=8)
    page.say("Hello.")
    page.wait_for_end()
    assert page.answer()
    page.one("nav a[data-view=node]").click()
    assert "lacks the scope `read`" in page.one("#node .refusal").text and not page.one("#node-body").is_displayed()


@check
def a_key_for_reading_alone_says_why_there_is_no_chat(page):
    page.visit()
    page.give(page.keys("create", "reader", "--scope", "read"))
    page.is_let_in()
    until("the reason", lambda: "lacks the scope `inference`" in page.one("#hint").text)
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#send:not(:disabled)")


@check
def the_question_fits_narrow_screens(page):
    page.browser.emulate(320, 568, touch=True)
    page.visit()
    page.give("password")
    page.is_refused("does not know it")
    wide = page.browser.js("return document.querySelector('#key-dialog').scrollWidth > document.querySelector('#key-dialog').clientWidth + 1")
    assert not wide and page.one("#key-form .primary").is_displayed()
