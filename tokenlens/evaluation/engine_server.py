"""Served models for evaluations: any number of vLLM or SGLang servers that have tokenlens.

The chat template and the tokenizer are used here, so that a server gets the very ids that the same
engine in this process would get; the model itself is not loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tokenlens import assets
from tokenlens.errors import AnswerError, NoTraceError, ServersError
from tokenlens.evaluation.arms import GREEDY, ArmSampling
from tokenlens.evaluation.dialects import (
    DIALECTS,
    Asked,
    Dialect,
    Reply,
)
from tokenlens.evaluation.engine import EngineName, counted, opened, phase_of, prompt_ids
from tokenlens.evaluation.records import Generated
from tokenlens.evaluation.servers import Patience, Servers, key_of
from tokenlens.spec import DecodingSpec, PhaseConfig

PROBE = "What is 2 + 3? <|x|> Σ 1,024"
"""Tokenizers that are not the same write this differently, most of them."""


class ServedModel:
    """One model behind servers of one kind.

    Parameters
    ----------
    model
        Whose tokenizer and chat template are used: a folder, a hub id, or an embedded model's name.
    base_url
        The servers' addresses.
    concurrency
        Requests at a time, all servers together.
    api_key_env
        The environment variable with the key; ``TOKENLENS_API_KEY`` where nothing is named.
    served_model
        The name under which the servers serve it; asked for where nothing is named.
    server
        ``vllm`` or ``sglang``; asked for where nothing is named.
    patience
        Fields of :class:`tokenlens.evaluation.servers.Patience`.

    Raises
    ------
    ValueError
        An argument is wrong, or the servers do not serve one model; names what differs.
    ServersError
        No server can be reached, or one carries no specs out.
    """

    name: EngineName = "server"

    def __init__(
        self,
        model: str,
        *,
        base_url: Sequence[str],
        concurrency: int = 32,
        api_key_env: str | None = None,
        served_model: str = "",
        server: str = "",
        patience: Mapping[str, float] | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        if server and server not in DIALECTS:
            raise ValueError(f"server: got {server!r}; allowed: {', '.join(DIALECTS)}")
        try:
            waits = Patience(**{**(patience or {})})  # type: ignore[arg-type]
        except TypeError:
            known = ", ".join(Patience.__dataclass_fields__)
            raise ValueError(f"patience: got {patience!r}; allowed: fields {known}") from None
        self.tokenizer: Any = AutoTokenizer.from_pretrained(assets.path_of(model))
        urls = [base_url] if isinstance(base_url, str) else base_url
        # By a spec's phase: the same with the markers that the servers found
        self._phases: dict[str, PhaseConfig] = {}
        self._servers = Servers(
            urls, concurrency=concurrency, api_key=key_of(api_key_env), patience=waits
        )
        try:
            self._dialect, self._model = self._introduce(server, served_model)
            self.versions = self._versions()
            self._compare_tokenizers()
        except BaseException:
            self._servers.close()
            raise

    def check(self, specs: Mapping[str, DecodingSpec]) -> None:
        """Ask every server for one token of each spec, before any question is asked.

        Raises
        ------
        ServersError
            A server carries no specs out, or refuses one; names it.
        """
        ids = prompt_ids(self.tokenizer, "1 + 1 = ?")
        for name, spec in specs.items():
            asked = Asked(ids, counted(spec), GREEDY, 1, 0)
            body = self._dialect.body(self._model, asked)
            try:
                answers = self._servers.ask_each(self._dialect.path, body)
            except ServersError as error:
                raise ServersError(f"spec {name!r}: {error}") from None
            for server, data in answers:
                try:
                    found = self._dialect.reply(data, asked).phase
                    if found is not None:
                        self._phases[spec.phase.model_dump_json()] = found
                except NoTraceError as error:
                    hint = self._dialect.hint
                    raise ServersError(f"{server.url}: {error}; {hint}") from None
                except AnswerError as error:
                    raise ServersError(f"{server.url}, spec {name!r}: {error}") from None

    def generate(
        self,
        prompts: Sequence[str],
        specs: Sequence[DecodingSpec],
        sampling: ArmSampling,
        *,
        max_new_tokens: int,
        seed: int,
    ) -> list[Generated]:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        found: dict[int, Generated] = {}
        self.answer_each(
            prompts, specs, sampling, max_new_tokens=max_new_tokens, seed=seed,
            rows=range(len(prompts)), answered=found.__setitem__,
        )  # fmt: skip
        return [found[row] for row in range(len(prompts))]

    def answer_each(
        self,
        prompts: Sequence[str],
        specs: Sequence[DecodingSpec],
        sampling: ArmSampling,
        *,
        max_new_tokens: int,
        seed: int,
        rows: Sequence[int],
        answered: Callable[[int, Generated], None],
    ) -> None:
        """Answer some rows of a batch, each by itself.

        Parameters
        ----------
        rows
            Which; what a row's answer is does not depend on the others.
        answered
            Is told each row's answer when it is there, in a thread of the engine's.
        """
        asked = [
            Asked(
                prompt_ids(self.tokenizer, prompts[row]), counted(specs[row]), sampling,
                max_new_tokens, (seed + row) % (1 << 31),
            )
            for row in rows
        ]  # fmt: skip

        def done(place: int, reply: Reply) -> None:
            row, ids = rows[place], asked[place].ids
            answered(
                row,
                Generated(
                    text=self.decode(reply.ids),
                    tokens=len(reply.ids),
                    finished=reply.finished,
                    opened=opened(
                        self.tokenizer,
                        prompts[row],
                        self.decode(ids),
                        reply.phase or self.phase(specs[row]),
                    ),
                    finish=reply.finish,
                    **reply.counts,
                ),
            )

        self._ask(asked, done)

    def _ask(self, asked: Sequence[Asked], done: Callable[[int, Reply], None]) -> None:
        self._servers.ask_all(
            self._dialect.path,
            [partial(self._dialect.body, self._model, one) for one in asked],
            lambda place, data: self._dialect.reply(data, asked[place]),
            done,
        )

    def complete(self, asked: Sequence[Asked]) -> list[Reply]:
        """Answers to prompts that are ids already, in their order."""
        asked = [one._replace(spec=counted(one.spec)) for one in asked]
        found: dict[int, Reply] = {}
        self._ask(asked, found.__setitem__)
        return [found[place] for place in range(len(asked))]

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return str(self.tokenizer.decode(list(ids)))

    def phase(self, spec: DecodingSpec) -> PhaseConfig:
        """See :class:`tokenlens.evaluation.engines.Engine`; what a server said of it counts."""
        known = self._phases.get(spec.phase.model_dump_json())
        return phase_of(self.tokenizer, spec) if known is None else known

    def states(self) -> list[dict[str, Any]]:
        """See :meth:`tokenlens.evaluation.servers.Servers.states`."""
        return self._servers.states()

    def close(self) -> None:
        """End the connections; the servers go on."""
        self._servers.close()

    def _introduce(self, kind: str, model: str) -> tuple[Dialect, str]:
        """What kind the servers are, and under which name they serve the model."""
        kinds, names = {}, {}
        for server, data in self._servers.ask_each("/v1/models"):
            cards = data.get("data") if isinstance(data, Mapping) else None
            served = [one for one in cards or () if isinstance(one, Mapping)]
            kinds[server.url] = kind or str(served[0].get("owned_by")) if served else kind
            names[server.url] = [str(one.get("id")) for one in served]
        if len(set(kinds.values())) > 1 or not set(kinds.values()) <= set(DIALECTS):
            raise ValueError(
                f"base-url: got servers of {kinds}; allowed: all of vllm or all of sglang (behind a"
                ' router, say which: --engine-args \'{"server": "sglang"}\')'
            )
        chosen = model or next(iter(names.values()), [""])[0]
        lacking = {url: found for url, found in names.items() if found and chosen not in found}
        if lacking:
            raise ValueError(
                f"served_model: got {chosen!r}, but these serve others: {lacking}; allowed: one"
                " model behind all of them"
            )
        return DIALECTS[next(iter(kinds.values()))], chosen

    def _versions(self) -> dict[str, str]:
        """The servers' versions, where they say them."""
        path, field = ("/version", "version")
        if self._dialect.name == "sglang":
            path = "/get_server_info"
        try:
            answers = self._servers.ask_each(path)
        except (ServersError, OSError):
            return {}
        found = {str(data.get(field)) for _, data in answers if isinstance(data, Mapping)}
        if len(found) > 1:
            raise ValueError(f"base-url: got servers of versions {sorted(found)}; allowed: one")
        return {f"{self._dialect.name} server": one for one in found if one != "None"}

    def _compare_tokenizers(self) -> None:
        """Refuse servers with another tokenizer; one that does not say its own is trusted."""
        body = {"model": self._model, "prompt": PROBE, "add_special_tokens": False}
        try:
            answers = self._servers.ask_each("/tokenize", body)
        except (ServersError, OSError):
            return
        own = self.tokenizer.encode(PROBE, add_special_tokens=False)
        for server, data in answers:
            theirs = data.get("tokens") if isinstance(data, Mapping) else None
            if isinstance(theirs, list) and theirs != own:
                raise ValueError(
                    f"model: got a tokenizer that is not the one of {server.url}; allowed: the one"
                    f" of the served model, {self._model!r}. It gives {own[:8]} where the server"
                    f" gives {theirs[:8]!s}"
                )
