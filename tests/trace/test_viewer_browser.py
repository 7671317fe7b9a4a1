"""The viewer in a browser: every interaction, on made-up traces."""

import re

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from trace_samples import SPEC, WORDS, recording

from tokenlens.trace import Recording
from tokenlens.trace.viewer import page

LENGTH = 600


class View:
    """The page, as a person would describe it."""

    def __init__(self, browser):
        self.browser = browser

    def open(self, path, recordings, **settings):
        path.write_text(page(recordings, **settings))
        self.browser.get(f"file://{path}")
        assert self.body.get_attribute("data-ready") == "yes"
        return self

    @property
    def body(self):
        return self.browser.find_element(By.TAG_NAME, "body")

    def js(self, script, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def count(self, selector):
        return self.js("document.querySelectorAll(arguments[0]).length", selector)

    def token(self, index, side=0):
        return self.js("panes.spans[arguments[0]][arguments[1]]", side, index)

    def keys(self, *keys):
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def choose(self, name, value):
        Select(self.browser.find_element(By.ID, name)).select_by_value(value)

    def find(self, text):
        box = self.browser.find_element(By.ID, "search")
        box.clear()
        box.send_keys(text)

    def hover_chart(self, position, click=False):
        x, y = self.js(
            "(() => { const r = chart.canvas.getBoundingClientRect();"
            " return [Math.round(r.left + chart.x(arguments[0])), Math.round(r.top + 60)]; })"
            ".apply(null, arguments)",
            position,
        )
        chain = ActionChains(self.browser)
        chain.w3c_actions.pointer_action.move_to_location(x, y)
        (chain.click() if click else chain).perform()

    @property
    def picked(self):
        return self.js("state.picked")

    @property
    def card(self):
        card = self.browser.find_element(By.ID, "card")
        return card.text if card.is_displayed() else None

    def errors(self):
        return [line for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture
def view(browser, tmp_path):
    view = View(browser).open(
        tmp_path / "view.html", [recording(LENGTH), recording(LENGTH - 50, engine="vllm", shift=1)]
    )
    yield view
    assert view.errors() == []


def background(element):
    return element.value_of_css_property("background-color")


def test_every_token_is_there_and_no_text_is_markup(view):
    assert view.count(".t") == LENGTH
    assert view.token(6).text.strip() == "<b>"
    assert view.token(3).text == "&amp;"
    assert view.count("#panes b") == 0


def test_colours_by_entropy_mode_and_weight(view):
    # Tokens 1 and 3 are latent and discrete; 1 has the higher entropy and the smaller top weight.
    seen = {}
    for how in ("entropy", "mode", "weight"):
        view.choose("colour", how)
        seen[how] = background(view.token(1)), background(view.token(3))
        assert seen[how][0] != seen[how][1]
    assert len({pair[0] for pair in seen.values()}) == 3
    view.keys("c")
    assert view.js("state.colour") == "entropy"


def test_a_hover_card_shows_the_entries_as_bars(view):
    ActionChains(view.browser).move_to_element(view.token(10)).perform()
    assert view.card is None or "position 20" in view.card
    ActionChains(view.browser).move_to_element(view.token(1)).perform()
    for part in ("position 11", "latent", "forced", "entropy", "0.700", "0.200"):
        assert part in view.card
    widths = view.js("[...document.querySelectorAll('#card .fill')].map((e) => e.offsetWidth)")
    assert widths[0] > widths[1] > widths[2] > 0
    assert widths[0] / widths[2] == pytest.approx(7, rel=0.1)


def test_a_card_goes_with_the_pointer_and_a_click_keeps_it(view):
    ActionChains(view.browser).move_to_element(view.token(1)).perform()
    assert view.card
    ActionChains(view.browser).move_to_element(view.browser.find_element(By.ID, "title")).perform()
    assert view.card is None
    ActionChains(view.browser).move_to_element(view.token(1)).click().perform()
    ActionChains(view.browser).move_to_element(view.token(4)).perform()
    assert "position 11" in view.card
    view.keys(Keys.ESCAPE)
    assert view.card is None


def test_the_curve_chooses_the_token_under_the_cursor(view):
    view.hover_chart(310)
    assert view.picked == [0, 300]
    assert view.token(300).get_attribute("class").split()[-1] == "on"
    top = view.js("panes.spans[0][300].getBoundingClientRect().top")
    assert 0 < top < 900
    view.hover_chart(410, click=True)
    view.hover_chart(210)
    assert view.picked == [0, 400]


def chart_pixels(view):
    """How often each colour of the page's palette is in the chart's right half, in two parts."""
    return view.js("""(() => {
      const c = chart.canvas, pen = c.getContext('2d'), ratio = c.width / c.clientWidth;
      const style = getComputedStyle(document.documentElement);
      const mark = style.getPropertyValue('--mark').trim().split(' ').map(Number);
      const count = (top, bottom) => {
        const half = c.width / 2;
        const d = pen.getImageData(half, top * ratio, half, (bottom - top) * ratio).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) {
          if (d[i + 3] > 200 && mark.every((m, k) => Math.abs(d[i + k] - m) < 12)) n++;
        }
        return n;
      };
      return { threshold: count(100, 117), switches: count(119, 126), wave: count(146, 189),
               height: c.clientHeight };
    })()""")


def test_the_curve_marks_thresholds_switches_and_the_wave(view, tmp_path):
    seen = chart_pixels(view)
    assert min(seen["threshold"], seen["switches"], seen["wave"]) > 50
    bare = recording(LENGTH)
    steps = tuple(
        step.model_copy(update={"edits": None, "switch": None, "latent": False})
        for step in bare.trace.steps
    )
    plain = SPEC.model_copy(update={"methods": ()})
    trace = bare.trace.model_copy(update={"steps": steps, "spec": plain})
    view.open(tmp_path / "bare.html", [bare.model_copy(update={"trace": trace})])
    seen = chart_pixels(view)
    assert (seen["threshold"], seen["switches"], seen["height"]) == (0, 0, 144)


def changed(**fields):
    """The recording with the same fields in each of its steps."""
    bare = recording(LENGTH)
    steps = tuple(step.model_copy(update=fields) for step in bare.trace.steps)
    return bare.model_copy(update={"trace": bare.trace.model_copy(update={"steps": steps})})


def test_the_card_says_what_was_edited_and_a_ban_is_no_wave(view, tmp_path):
    edits = {"tip": -3.0, "nowait": -1e10, "edt": 0.75, "min_p": 12.0}
    view.open(tmp_path / "edits.html", [changed(edits=edits)])
    ActionChains(view.browser).move_to_element(view.token(4)).perform()
    assert "tip -3.000 · nowait bans · edt temperature 0.75 · min_p keeps 12" in view.card
    assert view.js("traces[0].c.edits.nowait[4]") == -1e10
    assert chart_pixels(view)["height"] > 144
    view.open(tmp_path / "bans.html", [changed(edits={"nowait": -1e10})])
    assert chart_pixels(view)["height"] == 144


def test_without_a_gate_a_change_of_mode_is_a_switch(view, tmp_path):
    assert view.js("traces[0].c.token.findIndex((_, i) => traces[0].isSwitch(i))") == 3
    view.open(tmp_path / "chance.html", [changed(switch=None)])
    modes = [(s.phase, s.latent) for s in recording(LENGTH).trace.steps]
    expected = [
        i for i in range(1, LENGTH)
        if modes[i][0] == modes[i - 1][0] == "thinking" and modes[i] != modes[i - 1]
    ]  # fmt: skip
    assert expected == view.js(
        "traces[0].c.token.map((_, i) => i).filter(i => traces[0].isSwitch(i))"
    )


def test_search_marks_and_walks_the_matches(view):
    text = "".join(WORDS[step.token] for step in recording(LENGTH).trace.steps).lower()
    view.find("IS PRIME")
    count = text.count("is prime")
    assert view.browser.find_element(By.ID, "matches").text == f"0 of {count}"
    assert view.count(".hit") == 2 * count
    view.keys(Keys.ENTER, Keys.ENTER)
    first, second = view.js("state.hits[0]"), view.js("state.hits[1]")
    assert view.picked == second != first
    view.browser.find_element(By.ID, "search").send_keys(Keys.ESCAPE)
    view.keys("N")
    assert view.picked == first
    view.keys("N")
    assert view.picked == view.js("state.hits.at(-1)")
    view.keys("/")
    assert view.js("document.activeElement.id") == "search"
    view.find("no such words")
    assert view.browser.find_element(By.ID, "matches").text == "not found"
    assert view.count(".hit") == 0


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("latent", lambda s: s.latent),
        ("discrete", lambda s: not s.latent),
        ("mixed", lambda s: s.latent),
        ("forced", lambda s: s.forced),
        ("thinking", lambda s: s.phase == "thinking"),
        ("answer", lambda s: s.phase == "answer"),
    ],
)
def test_filters_dim_the_rest_and_keys_pass_over_it(view, tmp_path, name, keep):
    long = recording(900)
    view.open(tmp_path / "long.html", [long])
    view.choose("filter", name)
    shown = [i for i, step in enumerate(long.trace.steps) if keep(step)]
    assert view.count(".t:not(.off)") == len(shown)
    view.browser.find_element(By.ID, "title").click()
    view.keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert view.picked == [0, shown[1]]
    view.keys(Keys.END)
    assert view.picked == [0, shown[-1]]


def test_the_filter_of_switches(view):
    view.choose("filter", "switch")
    steps = recording(LENGTH).trace.steps
    shown = sum(
        s.switch is not None or (i > 0 and s.latent != steps[i - 1].latent)
        for i, s in enumerate(steps)
    )
    assert view.count(".t:not(.off)") == shown


def test_two_traces_stand_side_by_side_by_position(view):
    view.choose("second", "1")
    assert view.count(".t") == 2 * LENGTH - 50
    for index in (0, 77, 500):
        row = "panes.spans[arguments[0]][arguments[1]].closest('.row').innerText"
        rows = [view.js(row, side, index) for side in (0, 1)]
        assert rows[0] == rows[1]
        left, right = (view.token(index, side).rect for side in (0, 1))
        assert right["x"] > left["x"] + 300
    ActionChains(view.browser).scroll_to_element(view.token(40)).move_to_element(
        view.token(40)
    ).click().perform()
    assert view.count(".on") == 2
    assert "on" in view.token(40, 1).get_attribute("class").split()
    # Every token differs (the second trace is shifted by one), and says so.
    assert view.count(".differs") == view.count(".t")
    view.choose("filter", "differs")
    assert view.count(".off") == 0
    view.choose("second", "0")
    assert view.count(".differs") == 0
    view.choose("second", "")
    assert view.count(".t") == LENGTH


def test_keys_move_and_find_switches(view):
    view.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert view.picked == [0, 10]
    view.keys(Keys.ARROW_UP)
    assert view.picked == [0, 0]
    view.keys("s")
    first = view.picked
    assert "s" in view.token(first[1]).get_attribute("class").split()
    view.keys("s")
    assert view.picked[1] > first[1]
    view.keys("S")
    assert view.picked == first
    view.keys("f")
    assert view.js("state.filter") == "latent"
    view.keys("?")
    assert view.browser.find_element(By.ID, "help").is_displayed()
    view.keys(Keys.ESCAPE)
    assert not view.browser.find_element(By.ID, "help").is_displayed()


def test_the_curve_zooms(view):
    whole = view.js("chart.range")
    assert whole == [10, 9 + LENGTH]
    view.keys("+", "+")
    low, high = view.js("chart.range")
    assert high - low == pytest.approx(0.49 * (LENGTH - 1))
    view.keys("0")
    assert view.js("chart.range") == whole


def test_light_and_dark(view):
    def brightness(element, name):
        return sum(map(int, re.findall(r"\d+", element.value_of_css_property(name))[:3]))

    seen = {}
    for _ in range(2):
        theme = view.js("document.documentElement.dataset.theme")
        body = view.body
        seen[theme] = brightness(body, "background-color"), brightness(body, "color")
        view.keys("d")
    assert seen["light"][0] > 700 > 200 > seen["light"][1]
    assert seen["dark"][0] < 100 < 600 < seen["dark"][1]


def test_a_fault_is_on_top(view, tmp_path):
    assert view.count("#fault[hidden]") == 1
    view.open(tmp_path / "cut.html", [recording(5)], fault="cut in the middle of line 7")
    assert view.browser.find_element(By.ID, "fault").text == "cut in the middle of line 7"


def test_hostile_texts_stay_texts(view, tmp_path):
    evil = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>{{script}}"
    one = recording(30)
    hostile = one.model_copy(
        update={"prompt": evil, "model": evil, "texts": dict.fromkeys(range(10), evil)}
    )
    view.open(tmp_path / "evil.html", [hostile], title=evil, fault=evil)
    assert view.count("#panes img, #card img, #panes script") == 0
    assert view.browser.title != "x"
    assert view.token(0).text == evil
    view.keys(Keys.ARROW_RIGHT)
    assert view.count("#card img") == 0


def test_a_trace_without_steps_opens(view, tmp_path):
    summary = recording(5)
    trace = summary.trace.model_copy(update={"steps": ()})
    view.open(tmp_path / "empty.html", [Recording(trace=trace)])
    view.keys(Keys.ARROW_RIGHT, Keys.END, "s", "n")
    assert view.count(".t") == 0
    assert "5 tokens" in view.browser.find_element(By.ID, "panes").text


def test_ten_thousand_tokens_are_usable(view, tmp_path):
    view.open(tmp_path / "long.html", [recording(10_000)])
    assert view.count(".t") == 10_000
    # The browser lays out only what is near the screen.
    skipped = view.js(
        "[...document.querySelectorAll('.block')].filter((b) =>"
        " !b.firstChild.checkVisibility({contentVisibilityAuto: true})).length"
    )
    assert skipped > 15
    view.keys(Keys.END)
    assert view.picked == [0, 9_999]
    assert "position 10009" in view.card
    view.find("prime")
    assert view.count(".hit") == 1_000


def test_a_notebook_s_frame_runs(browser, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><body>" + recording(40).trace._repr_html_())
    browser.get(f"file://{path}")
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    tokens = browser.find_elements(By.CSS_SELECTOR, ".t")
    browser.switch_to.default_content()
    assert len(tokens) == 40
