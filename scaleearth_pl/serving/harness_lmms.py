"""The class that lmms-eval drives; imported by lmms-eval alone (`harness.manifest` names it).

model_args:  model=RUN_OR_FOLDER  base=  policy=  gsd_field=FIELD  gsd_m=METRES  max_new_tokens=  device=
"""

from itertools import groupby
from typing import Any, get_args

from lmms_eval.api.model import lmms

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.harness import HarnessRequest, answer_requests, one_image
from scaleearth_pl.serving.harness_corpus import SIGMA_FIELD
from scaleearth_pl.serving.scale import Policy


class ScaleEarthLmms(lmms):
    """One model in one process; generation only, because the model was trained to answer and not to rank.

    Args:
        model: a run or an adapter folder.
        base: as `Assistant.from_pretrained`.
        policy: whose GSD counts; by default the document's where there is one, else SSE-U's word.
        gsd_field: field of the task's documents that holds metres per pixel; beside it, `gsd_sigma_log10` may say how
            sure that is, in decades.
        gsd_m: metres per pixel of every image of the task, where the documents do not say.
        max_new_tokens: longest answer, whatever the task allows.
        device: auto, cpu or cuda.
        batch_size: of the harness; passes are bounded by tokens here, so it has no effect.
    """

    is_simple = True

    def __init__(
        self,
        model: str | None = None,
        base: str | None = None,
        policy: str | None = None,
        gsd_field: str | None = None,
        gsd_m: float | None = None,
        max_new_tokens: int = 24,
        device: str = "auto",
        batch_size: int | str = 1,  # noqa: ARG002
        max_batch_size: int | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        if policy is not None and policy not in get_args(Policy):
            raise ConfigError("no such policy", field="policy", value=policy, remedy=f"one of {get_args(Policy)}")
        self._assistant = Assistant.from_pretrained(model, base=base, device=device, max_new_tokens=int(max_new_tokens))
        self._policy, self._gsd_field = policy, gsd_field
        self._gsd_m = None if gsd_m is None else float(gsd_m)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers of all requests, in order."""
        policy: Any = self._policy
        found: list[str] = []
        for limit, part in groupby(requests, key=self._limit):  # tasks that want longer answers come in turn
            asked = [self._asked(*request.args) for request in part]
            found += answer_requests(self._assistant, asked, policy=policy, max_new_tokens=limit)
        return found

    def _limit(self, request: Any) -> int:
        longest = self._assistant.max_new_tokens
        return min(longest, int(request.args[1].get("max_new_tokens", longest)))

    def _asked(self, text: str, options: Any, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> HarnessRequest:
        document = self.task_dict[task][split][doc_id]
        until, (gsd_m, sigma) = options.get("until") or (), self._scale(document, task)
        return HarnessRequest(
            image=one_image(doc_to_visual(document), task),
            text=text,
            gsd_m=gsd_m,
            gsd_sigma_log10=sigma,
            until=(until,) if isinstance(until, str) else tuple(until),
        )

    def _scale(self, document: Any, task: str) -> tuple[float | None, float | None]:
        """(GSD, sigma): the document's own word, else that for the whole task, else None; sigma of the former only."""
        if self._gsd_field is None:
            return self._gsd_m, None
        if self._gsd_field not in document:
            raise ConfigError(
                "the task's documents have no such field",
                field="gsd_field",
                value=(task, self._gsd_field),
                remedy=f"one of {sorted(document)}",
            )
        told: float | None = document[self._gsd_field]
        return (self._gsd_m, None) if told is None else (told, document.get(SIGMA_FIELD))

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refused: see the class."""
        raise ConfigError(
            "scores of given answers are not offered",
            field="loglikelihood",
            value=len(requests),
            remedy="use generate_until tasks",
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refused: one round is what the model was trained on."""
        raise ConfigError(
            "one round only", field="generate_until_multi_round", value=len(requests), remedy="leave it out"
        )
