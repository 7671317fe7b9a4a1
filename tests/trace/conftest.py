"""A headless Chromium. Without one the tests fail: a viewer that nobody opened is untested."""

import os
import shutil

import pytest

DRIVERS = ("chromedriver", "chromium.chromedriver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "no Chromium with its driver was found; install them (Debian: apt-get install chromium"
    " chromium-driver), or set TOKENLENS_NO_BROWSER=1 to leave the viewer untested"
)


@pytest.fixture(scope="session")
def browser():
    """A window of 1400 by 900 that has opened nothing yet."""
    from selenium import webdriver

    if os.environ.get("TOKENLENS_NO_BROWSER") == "1":
        pytest.skip("TOKENLENS_NO_BROWSER=1")
    driver = next(filter(None, map(shutil.which, DRIVERS)), None)
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if driver is None or binary is None:
        pytest.fail(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,900")
    # The page must need no network: there is none.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()
