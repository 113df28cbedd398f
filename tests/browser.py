"""A real headless Chromium for the tests that look at a page, and what they ask of it."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # a container's root has no other way
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def require(found: object, missing: str) -> None:
    """Skip without a browser, unless the environment says that there must be one."""
    if not found:
        (pytest.fail if os.environ.get("JAXSOFTMAX_REQUIRE_BROWSER") else pytest.skip)(missing)


@contextmanager
def chromium(profile: Path) -> Iterator["Browser"]:
    """Start a browser with a new profile, and end it."""
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        webdriver = None
    require(webdriver, "selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    require(binary and driver, "there is no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()


class Browser:
    """A page in Chromium."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1000, dark: bool = False) -> None:
        """Open a file in a window of that width, with a light or a dark scheme of colours."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # what was before is none of this page's
        self.command("Network.enable")
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        self.emulate(dark=dark)
        self.driver.get(path.as_uri())

    def emulate(self, *, media: str = "", dark: bool = False) -> None:
        """Show the page in a light or a dark scheme, or as it is printed."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def errors(self) -> list[str]:
        """What the console has been told."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Every address that the page asked for, itself and data inside it left out."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        asked = {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
            and message["params"]["documentURL"] == self.driver.current_url
        }
        assert self.driver.current_url in asked, "the log of requests is not working"
        outside = {url for url in asked if not url.startswith("data:")}
        return outside - {self.driver.current_url}

    def picture(self, box: dict[str, float] | None = None) -> bytes:
        """A PNG of the whole page, or of a box of it."""
        clip = {} if box is None else {"clip": {**box, "scale": 1}}
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True, **clip)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """The page on paper."""
        printed = self.command("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(printed["data"])

    def boxes(self, selector: str) -> list[dict[str, float]]:
        """Where on the page each element that the selector finds is drawn."""
        return self.run(
            """return [...document.querySelectorAll(arguments[0])].map(e => {
              const r = e.getBoundingClientRect();
              return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}})""",
            selector,
        )
