"""Generation on Ray: the stage as it is, with a teacher that answers on all workers.

In: what the stage gets, and a place. Out: the same artifact. What is asked, and again after a reply
of no use, is the stage's; replies go into its request cache as they come, and its budget is kept
where all requests start. So neither a retry nor a judge nor a paraphrase needs anything of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from potstill.core.stage import Artifact, Context, Draft
from potstill.generate import run as stage
from potstill.generate.config import GenerateConfig
from potstill.scale.cluster import connected
from potstill.scale.place import Place
from potstill.scale.teacher import open_on


def run(
    config: GenerateConfig,
    inputs: Mapping[str, Artifact],
    draft: Draft,
    context: Context,
    place: Place,
) -> None:
    """The stage, with its teachers at that place. Errors: the stage's, and UnavailableError."""
    with connected(place) as cluster:
        # The stage asks in blocks that are long beside what runs at once: here, on all workers.
        wide = config.model_copy(update={"parallel": config.parallel * cluster.workers})
        stage.run(wide, inputs, draft, context, opening=open_on(cluster, config.parallel))
