"""lm-eval's tasks on servers that have tokenlens."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from tokenlens.evaluation.arms import ArmSampling
from tokenlens.evaluation.dialects import Asked
from tokenlens.evaluation.engine_server import ServedModel
from tokenlens.evaluation.harness.specs import Repeats, read, refuse_scoring, refuse_several

SAMPLED = ("temperature", "top_p", "top_k", "min_p")


class TokenlensServer(LM):  # type: ignore[misc]
    """A served model with a spec; prompts are written as ids with the model's own tokenizer.

    Parameters
    ----------
    pretrained
        Whose tokenizer and chat template are used.
    base_url
        The servers' addresses, with ``;`` between several.
    spec
        A preset's name or a file.
    max_gen_toks
        Of tasks that do not say theirs.
    batch_size, max_batch_size, device
        lm-eval hands them to every model; servers have their own, and ``concurrency`` says how many
        requests are on their way at a time.
    settings
        Those of :class:`tokenlens.evaluation.engine_server.ServedModel`.
    """

    def __init__(
        self,
        pretrained: str,
        base_url: str,
        spec: str = "",
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.decoding_spec = read(spec)
        self._max_gen_toks = max_gen_toks
        urls = [url.strip() for url in base_url.split(";")]
        self._served = ServedModel(pretrained, base_url=urls, **settings)
        self._served.check({"spec": self.decoding_spec})
        self.tokenizer: Any = self._served.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """As lm-eval names the cache of rendered prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What lm-eval records of the chat template."""
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as the model's template writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts, in the requests' order; equal requests are samples of their own."""
        repeats = Repeats()
        asked, stops = [], []
        for request in requests:
            context, given = request.args
            ids = self._encode(context)
            spec = repeats.spec(self.decoding_spec, ids)
            sampling, tokens, until = self._settings(given)
            asked.append(
                Asked(ids, spec, sampling, tokens, (spec.seed or 0) % (1 << 31), tuple(until))
            )
            stops.append(until)
        found = []
        for request, until, reply in zip(requests, stops, self._served.complete(asked)):
            text = self.tokenizer.decode(reply.ids, skip_special_tokens=True)
            text = postprocess_generated_text(text, until, None)
            self.cache_hook.add_partial("generate_until", request.args, text)
            found.append(text)
        return found

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        """Refused: a server answers, it does not score texts that it is given."""
        refuse_scoring(self.decoding_spec)
        raise NotImplementedError(
            "tokenlens-server: got a loglikelihood task; allowed: tasks that generate"
            " (output_type: generate_until)"
        )

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Refused as well."""
        self.loglikelihood(requests)
        raise AssertionError

    def _encode(self, context: str) -> Sequence[int]:
        # A template has written the first token already.
        bos = self.tokenizer.bos_token
        plain = bool(bos) and context.startswith(bos)
        options = {"add_special_tokens": False} if plain else {}
        return list(self.tokenizer.encode(context, **options))

    def _settings(self, given: dict[str, Any]) -> tuple[ArmSampling, int, list[str]]:
        """Sampling, tokens and stops of one request."""
        left = dict(normalize_gen_kwargs(given, self._max_gen_toks))
        until, tokens = left.pop("until", None) or [], left.pop("max_gen_toks")
        samples = left.pop("do_sample", False)
        values = {name: left.pop(name) for name in SAMPLED if left.get(name) is not None}
        if not samples:
            values["temperature"] = 0.0
        refuse_several(left.pop("n", 1))
        left = {name: value for name, value in left.items() if value is not None}
        if left:
            raise ValueError(
                f"gen_kwargs: got {', '.join(left)}; allowed: {', '.join(SAMPLED)}, do_sample,"
                " until and max_gen_toks"
            )
        return ArmSampling(**{"top_p": 1.0, **values}), int(tokens), list(until)
