"""A headless Chromium. Without one its tests are skipped, and one line says so; in CI they fail."""

import os
import shutil

import pytest

DRIVERS = ("chromedriver", "chromium.chromedriver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "no Chromium with its driver was found; install them (Debian: apt-get install chromium"
    " chromium-driver)"
)
SKIPPED = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def browser(pytestconfig):
    """A window of 1400 by 900 that has opened nothing yet."""
    from selenium.common.exceptions import WebDriverException

    in_ci = bool(os.environ.get("CI"))
    if os.environ.get("TOKENLENS_NO_BROWSER") == "1" and not in_ci:
        _without(pytestconfig, in_ci, "TOKENLENS_NO_BROWSER=1")
    driver = next(filter(None, map(shutil.which, DRIVERS)), None)
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if driver is None or binary is None:
        _without(pytestconfig, in_ci, MISSING)
    try:
        running = _start(driver, binary)
    except WebDriverException as error:
        # Ubuntu has a stand-in of this name that only says where to get the browser.
        first = str(error.msg).splitlines()[0][:200] if error.msg else ""
        _without(pytestconfig, in_ci, f"{binary} does not start: {first}")
    yield running
    running.quit()


def _start(driver, binary):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,900")
    # The page must need no network: there is none.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def _without(config, in_ci, reason):
    if in_ci:
        pytest.fail(f"CI skips no test: {reason}")
    config.stash[SKIPPED] = reason
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter, config):
    """The line that is seen at the end, whatever pytest's verbosity."""
    reason = config.stash.get(SKIPPED, "")
    if reason:
        terminalreporter.write_line(f"the trace viewer's tests were skipped: {reason}", yellow=True)
