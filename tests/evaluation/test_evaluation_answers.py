"""What counts as an answer: after the thinking, in a box or behind a phrase, and nothing else."""

import itertools
import multiprocessing
import os
import random
import threading

import pytest

from tokenlens.evaluation import GREEDY, Arm, Generated, Question, Task, evaluate, math_score
from tokenlens.evaluation.answers import (
    AnswerMarkers,
    answer_part,
    boxes,
    is_open,
    letter_of,
    markers_of,
    math_answer,
)
from tokenlens.evaluation.engine_hf import HuggingFace
from tokenlens.evaluation.tasks import score_choice, score_math
from tokenlens.spec import DecodingSpec, PhaseConfig

FAMILIES = {
    "usual": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "kimi-vl": ("◁think▷", "◁/think▷"),
    "s1": ("<|im_start|>think", "<|im_start|>answer"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "muse": (" to=self<|message|>", "<|eom|>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_behind_the_thinking_of_any_family(family):
    start, end = FAMILIES[family]
    markers = AnswerMarkers(start, end)
    ended = f"{start}so \\boxed{{1}}{end}\n\\boxed{{2}}<|im_end|>"
    assert answer_part(ended, markers) == "\\boxed{2}"
    # The template opened it.
    assert answer_part(f"so \\boxed{{1}}{end}\\boxed{{2}}", markers, True) == "\\boxed{2}"
    assert answer_part("so \\boxed{1}", markers, True) == ""
    assert answer_part("so \\boxed{1}", markers) == "so \\boxed{1}"
    assert answer_part(f"{start}so \\boxed{{1}}", markers) == ""
    # A second thought that never ended.
    assert answer_part(f"{ended}{start}hm \\boxed{{3}}", markers) == ""
    assert answer_part(f"{start}a{end}b{start}c{end}d", markers) == "d"
    # The mark that ends a thought may end the answer too, if it is one that ends messages.
    again = answer_part(f"{start}a{end}42{end}", markers)
    assert again == ("42" if end == "<|eom|>" else "")
    # Somebody else's marker is text.
    other = "</think>" if end != "</think>" else "[/THINK]"
    assert answer_part(f"{start}a{end}\\boxed{{2}} {other} x", markers).startswith("\\boxed{2}")


HARMONY = AnswerMarkers("<|channel|>analysis<|message|>", "<|end|>")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "<|channel|>analysis<|message|>\\boxed{1}<|end|><|start|>assistant<|channel|>final"
            "<|message|>\\boxed{2}<|return|>",
            "\\boxed{2}",
        ),
        ("<|channel|>analysis<|message|>\\boxed{1}<|return|>", ""),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>"
            "\\boxed{1}<|return|>",
            "",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>\\boxed{1}<|call|>",
            "",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final "
            "<|constrain|>json"
            "<|message|>{}<|return|>",
            "{}",
        ),
        ("<|channel|>final<|message|>5<|end|>", "5"),
    ],
)
def test_only_the_final_channel_is_for_the_reader(text, answer):
    assert answer_part(text, HARMONY) == answer
    if "final" not in text:
        # Whatever the spec's markers say.
        assert answer_part(text) == ""


def test_random_texts_have_the_answer_that_their_thoughts_leave():
    rng = random.Random(3)
    for start, end in FAMILIES.values():
        for _ in range(200):
            opened = rng.random() < 0.5
            text, answer, thinking = "", "", opened
            for _ in range(rng.randrange(6)):
                if thinking and rng.random() < 0.5:
                    text, answer, thinking = text + end, "", False
                elif not thinking and rng.random() < 0.3:
                    text, answer, thinking = text + start, "", True
                piece = rng.choice(["a ", "\\boxed{3}", "\n", "é"])
                text, answer = text + piece, answer if thinking else answer + piece
            expected = "" if thinking else answer.strip()
            assert answer_part(text, AnswerMarkers(start, end), opened) == expected, (text, opened)


def test_a_template_leaves_a_thought_open_or_not():
    markers = AnswerMarkers()
    assert is_open("<|user|>x</think><|assistant|><think>\n", "x", markers)
    assert not is_open("<|user|>x<|assistant|><think>\n\n</think>\n", "x", markers)
    assert not is_open("<|user|>what is <think>?<|assistant|>", "what is <think>?", markers)
    assert not is_open("<|user|>x<|assistant|>", "x", markers)


def test_markers_may_be_ids():
    phase = PhaseConfig(think_start=(1, 2), think_end="</t>")
    assert markers_of(phase, lambda ids: f"<{ids}>") == ("<[1, 2]>", "</t>")
    assert markers_of(PhaseConfig(), None) == ("<think>", "</think>")
    with pytest.raises(ValueError, match=r"phase\.think_start"):
        markers_of(phase, None)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}} \boxed {3}", [r"\{1, 2\}", "3"]),
        (r"\boxed{\boxed{5}} \fbox{6}", ["5", "6"]),
        (r"\boxed{} \boxed{1", []),
        (r"} \boxed{a{b}c}", ["a{b}c"]),
    ],
)
def test_boxes_nest_and_must_close(text, content):
    assert [one for _, _, one in boxes(text)] == content


@pytest.mark.timeout(300)
def test_what_is_built_to_take_long_ends():
    for piece in ("\\boxed{", "{", "*", " ", "answer is ", "(", "A ", "answer: $", "\\text{"):
        for text in (piece * 20_000, "the answer is " + piece * 20_000):
            letter_of(text), math_answer(text), answer_part(text)


RIGHT = [
    r"\boxed{2024}",
    r"so \boxed{\text{2024}}",
    r"$\boxed{2{,}024}$",
    r"\boxed{2,024}",
    r"\boxed{2\,024}",
    r"\boxed{2024.}",
    r"\boxed{x = 2024}",
    r"\boxed{2024\text{ apples}}",
    r"\boxed{2024~\text{cm}^2}",
    r"first \boxed{3}. No: \boxed{2024}",
    r"\boxed{\boxed{2024}}",
    r"\boxed{2024}, that is \boxed{2024}",
    r"\boxed{２０２４}",
    r"\boxed{\dfrac{4048}{2}}",
    r"\boxed{2024} and the box was put within \boxed{}",
    r"**Answer:** 2024",
    "Answer: 2024.",
    "The final answer is $2024$.",
    r"the answer is: \(2024\)",
    "#### 2,024",
    "**Answer**: **2024**",
    "The answer to this problem is 2024 apples.",
    "So the answer is\n\n2024",
    "2024",
    "$2024$",
    "The answer is \\frac{4048}{2}.",
    "ANSWER: 2024",
    "the answer is x = 2024",
    "Ａｎｓｗｅｒ：２０２４",
    "She makes 46 * 44 = 2024 dollars.\n#### 2024 dollars",
    "#### 1. Compute\n\nIt is 46 * 44.\n\n#### 2,024",
    "The answer is 7. Wait, the answer is 2024.",
    "The answer is 7 is wrong. The answer is 2024, not 7.",
    "**Final Answer**\n\n2024",
    "### Final Answer\n\n**2024**",
    "Answer - 2024",
    "The answer is therefore 2024.",
    "The answer is exactly 2024",
    "<answer>2024</answer>",
    '{"reason": "46 * 44", "answer": 2024}',
    "答案是2024。",
    "The answer is “2024”",
    "The answer is \u200b2024",
    r"Answer: $\$2024$",
    "The answer is 2024 m/s",
    "The answer is 46 × 44 = 2024.",
    r"\boxed 2024",
    r"\framebox{2024}",
    r"\boxed{2 024}",
    r"\boxed{\textcolor{red}{2024}}",
    r"\boxed{\text{Answer: }2024}",
    r"\boxed{**2024**}",
    "\\boxed{𝟐𝟎𝟐𝟒}",
    "x = 2024",
    "$2{,}024$",
    "+2024",
]
WRONG = [
    "this AIME problem of 2024 is too hard",
    "In 2024, I cannot tell.",
    "",
    "Year 2024: no idea.",
    "The answer is unknown, as this problem of 2024 is too hard",
    "x = 2024 would be nice",
    "the answer is not 2024",
    r"\boxed{7} rather than 2024",
    r"\boxed{2024}. No: \boxed{3}",
    "Answer: none. 2024",
    "There are 2024 answers",
    r"\boxed{2024",
    r"\boxed{7}, the answer is 2024",
    "<think>the answer is 2024",
    r"<think>\boxed{2024}</think>I give up",
    "The wrong answer is 2024",
    "It would be wrong to say the answer is 2024",
    "Answer: 2024 is not right",
    "The answer is 2024? No. The answer is 7",
    "The answer is 2024, 7",
    "#### 2024. An odd year",
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_number_that_is_given_as_the_answer(text):
    assert score_math(Question("1", "", "2024"), text)


@pytest.mark.parametrize("text", WRONG)
def test_a_number_that_is_only_mentioned(text):
    assert not score_math(Question("1", "", "2024"), text)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("1,2", r"\boxed{1}, \boxed{2}"),
        ("1,2", r"$\boxed{1}$ and $\boxed{2}$"),
        ("1/2", r"\boxed{50\%}"),
        (r"\frac{\pi}{2}", r"the answer is $\frac{\pi}{2}$, as"),
        ("-3", "Answer: -3"),
        ("-3", "The answer is −3"),
        ("-3", "#### –3"),
        ("-3", "The answer is negative 3."),
        ("-3", r"\boxed{{-}3}"),
        ("-3", "−3"),
        ("3/4", "The answer is ¾."),
        ("3/4", r"$\frac34$"),
        ("7.5", "Answer: 7½"),
        ("2\\pi", "The answer is 2π."),
        ("2\\sqrt{10}", "The answer is 2√10."),
        ("90", "Answer: 90°"),
        ("(3,4)", "The answer is (3,4)."),
        ("x^2+1", "The answer is x^2+1."),
        ("6 - 5i", "The answer is 6 - 5i."),
        ("1,2", "The answer is 1, 2."),
        ("(3, \\pi/2)", r"\boxed{\left(3, \frac{\pi}{2}\right)}"),
    ],
)
def test_other_values(gold, text):
    assert score_math(Question("1", "", gold), text)


DRESSES = [
    "{}",
    "({})",
    "**{}**",
    "*{}*",
    "**({})**",
    "`{}`",
    "${}$",
    "\\({}\\)",
    "\\text{{{}}}",
    "\\textbf{{{}}}",
    "\\mathrm{{({})}}",
    "$\\mathbf{{{}}}$",
    "[{}]",
    '"{}"',
    "{})",
    "{}.",
    "\\textbf{{({})}}",
    "$\\text{{{}}}$",
    "\\text{{({})}}",
    "__{}__",
    "\\mathsf{{{}}}",
    "\\operatorname{{{}}}",
    "\\textcolor{{red}}{{{}}}",
    "\\Large {}",
    "“{}”",
    "‘{}’",
    "<b>{}</b>",
    "\u200b{}\u200b",
    "{}) 42 m",
    "({}) the quark",
    "**{}) 42**",
]
PHRASES = [
    "The answer is {}",
    "the correct answer is {}",
    "**Answer:** {}",
    "**Answer**: {}",
    "Answer: {}",
    "ANSWER: {}",
    "Final answer: {}",
    "The final answer is: {}",
    "The correct option is {}",
    "the best choice is {}",
    "So the answer is option {}",
    "Therefore, the answer is therefore {}",
    "The answer to the question is {}",
    "Answer:\n\n{}",
    "I choose {}",
    "I would go with {}",
    "The answer must be {}",
    "Correct answer: {}",
    "### Answer: {}",
    "final answer is {}",
    "答案是 {}",
    "Ａｎｓｗｅｒ： {}",
    "## Final Answer\n\n{}",
    "**Answer**\n{}",
    "Answer - {}",
    "Answer → {}",
    "The answer is probably {}",
    "The answer appears to be {}",
    "<answer>{}</answer>",
    "答案选{}",
    "La respuesta correcta es {}",
    "✅ Answer: {}",
]


@pytest.mark.parametrize("letter", ["A", "C", "I", "c", "Ｃ"])
def test_a_letter_in_any_phrase_and_any_dress(letter):
    wanted = {"c": "C", "Ｃ": "C"}.get(letter, letter)
    missed = []
    for phrase, dress in itertools.product(PHRASES, DRESSES):
        said = phrase.format(dress.format(letter))
        for text in (said, f"A quark is a particle. I think so.\n\n{said}", f"{said}\n\nAs shown."):
            if letter_of(text) != wanted:
                missed.append(text)
    assert missed == []


@pytest.mark.parametrize("dress", DRESSES)
def test_a_letter_in_a_box_in_any_dress_wins(dress):
    for tail in ("", " The answer: A", "\n\nAnswer: **B**", "\nSo A is correct."):
        assert letter_of(f"maybe \\boxed{{B}}, no: $\\boxed{{{dress.format('C')}}}$.{tail}") == "C"
    assert letter_of(f"\\boxed{{{dress.format('c')}}}") == "C"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(C) is correct", "C"),
        ("Option C is the correct answer.", "C"),
        ("**C** is the best choice", "C"),
        ("The correct option is (C).", "C"),
        ("C", "C"),
        ("**C**", "C"),
        ("(c)", "C"),
        ("C.", "C"),
        (r"\boxed{42}. The answer is B.", "B"),
        ("The answer is A because of it", "A"),
        ("The answer is B. Wait, the answer is D.", "D"),
        (r"\boxed{Option C}", "C"),
        (r"\boxed{C: 42}", "C"),
        (r"\boxed{\text{C) 42 m}}", "C"),
        (r"\boxed{}. Answer: D", "D"),
        ("The answer is C, since A is a constant", "C"),
        (r"The answer is $\boxed{\textbf{(D)}\ 4}$", "D"),
        (r"\boxed C", "C"),
        (r"\boxed{\text{The correct answer is (C)}}", "C"),
        (r"\boxed{\text{Choice } C}", "C"),
        ("\\boxed{𝐂}", "C"),
        ('{"answer": "C"}', "C"),
        ("{'answer': 'C'}", "C"),
        ("The answer is C rather than A.", "C"),
        ("So C is the answer.", "C"),
        ("C must be correct.", "C"),
        ("Hence, option C.", "C"),
        ("Final answer C", "C"),
        ("A is no quark.\n\n**C**", "C"),
        ("**C. 42 m**", "C"),
        ("The answer is ~~A~~ C", "C"),
        ("因此，选 C。", "C"),
        ("정답은 C입니다", "C"),
        ("The wrong answer is A. The answer is C.", "C"),
    ],
)
def test_a_letter(text, letter):
    assert letter_of(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "A quark is small.",
        "The answer is a quark.",
        "The answer is I think unclear",
        "",
        "The answer is not C.",
        "It is A that I doubt",
        "A, B, C and D are all wrong",
        "The answers are A and B",
        "The answer is A or B",
        r"\boxed{A, B}",
        "I am not sure",
        "Options: A) 1, B) 2",
        "Answer choices: A) 1",
        "The answer is approximately 5",
        "C is not correct",
        "I would not choose C",
        r"\boxed{a quark}",
        "The answer is A quark",
        "We choose a basis.",
        "Pick a vector",
        "The answer is undefined",
        "Consider a case",
        "The wrong answer is C.",
        "Answer A is wrong.",
        "The answer is a rather large number",
        "The answer is a given",
        "the answer is D-glucose",
        "So a",
        "A\nB\nC\nD",
        "A) 1\nB) 2",
        r"\boxed{\frac{A}{B}}",
    ],
)
def test_a_stray_letter_is_none(text):
    assert letter_of(text) is None


class Says:
    """An engine that gives prepared texts, and counts its calls."""

    name = "hf"

    def __init__(self, *texts, opened=False):
        self.texts, self.opened, self.calls = texts, opened, 0

    def generate(self, prompts, specs, sampling, *, max_new_tokens, seed):
        self.calls += 1
        return [
            Generated(text=text, tokens=9, finished=True, opened=self.opened)
            for text, _ in zip(self.texts, prompts, strict=True)
        ]

    def decode(self, ids):
        return {7: "[THINK]", 8: "[/THINK]"}[ids[0]]

    def close(self):
        pass


def run(folder, engine, score=score_math, phase=None, **settings):
    questions = tuple(Question(str(i), "?", "5") for i in range(len(engine.texts)))
    arm = Arm(name="a", spec=DecodingSpec(phase=phase or PhaseConfig()))
    task = Task("t", questions, score, 50)
    return [one.correct for one in evaluate(engine, task, [arm], folder, **settings).records("a")]


@pytest.mark.parametrize("marks", [("[THINK]", "[/THINK]"), ((7,), (8,))])
def test_an_evaluation_looks_behind_the_spec_s_own_markers(tmp_path, marks):
    phase = PhaseConfig(think_start=marks[0], think_end=marks[1])
    texts = (
        "[THINK]\\boxed{5}[/THINK]\\boxed{6}",
        "[THINK]\\boxed{6}[/THINK]\\boxed{5}",
        "[THINK]\\boxed{5}",
        "x[/THINK]\\boxed{5} </think> done",
        "\\boxed{5}",
    )
    assert run(tmp_path / "a", Says(*texts), phase=phase) == [False, True, False, True, True]
    opened = run(tmp_path / "b", Says(*texts, opened=True), phase=phase)
    assert opened == [False, True, False, True, False]


def test_scoring_works_in_a_thread(tmp_path):
    found = []

    def work():
        found.append(run(tmp_path, Says("\\boxed{5}", "\\boxed{\\frac{10}{2}}", "\\boxed{6}")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[True, True, False]]


def test_a_process_that_forks_while_a_thread_scores_can_score():
    with math_score._WORKER._lock:
        child = multiprocessing.get_context("fork").Process(
            target=lambda: math_score.equal("5", "\\boxed{5}") or os._exit(3)
        )
        child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


def test_a_batch_that_cannot_be_scored_is_not_lost(tmp_path):
    def broken(question, text):
        raise RuntimeError("no score")

    engine = Says("\\boxed{5}", "\\boxed{6}\u2028x")
    with pytest.raises(RuntimeError, match="no score"):
        run(tmp_path, engine, score=broken)
    assert run(tmp_path, engine) == [True, False]
    assert engine.calls == 1


def test_what_takes_for_good_is_wrong_and_harms_nobody(tmp_path):
    question = Question("1", "", "5")
    assert score_math(question, "\\boxed{5}")
    assert not math_score.equal("\\boxed{5}", "\\boxed{9^{9^{9^{9^{9}}}}}", patience=3)
    assert not math_score.equal("\\boxed{5}", "\\boxed{" + "(" * 9000 + "}")
    assert score_math(question, "\\boxed{5}")
    assert score_choice(Question("1", "", "C"), "\\boxed{C}")


def test_an_engine_says_whether_its_template_opened_the_thinking():
    engine = HuggingFace("tiny-reasoner-small")
    think = engine.tokenizer.convert_tokens_to_ids("<think>")
    stock = engine.tokenizer.chat_template
    found = []
    for template in (stock, stock + "<think>\n", stock + "<think>\n\n</think>\n\n"):
        engine.tokenizer.chat_template = template
        for phase in (PhaseConfig(), PhaseConfig(think_start=(think,))):
            answers = engine.generate(
                ["what is <think>?"], [DecodingSpec(phase=phase)], GREEDY, max_new_tokens=2, seed=0
            )
            found.append(answers[0].opened)
    assert found == [False, False, True, True, False, False]
    assert engine.decode([think]) == "<think>"
