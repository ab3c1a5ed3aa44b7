"""Which composed scenes a model is scored on."""

from __future__ import annotations

from dataclasses import dataclass

from teso_deploy.options.fields import Options, option


@dataclass(frozen=True, kw_only=True)
class SceneOptions(Options):
    """Which composed scenes a model is scored on.

    Attributes:
        scenes: scenes in each row of the table. Default: 300.
        seed: the scenes depend on this only. Default: 0.
        seeds: number of seeds, from ``seed`` on; the table then has means and their spread. Default: 1.
    """

    scenes: int = option(300, "Scenes per row.", minimum=1)
    seed: int = option(0, "Seed of the scenes.", minimum=0)
    seeds: int = option(1, "Number of seeds, from --seed on, for means and their spread.", minimum=1)

    @property
    def every_seed(self) -> range:
        """All seeds."""
        return range(self.seed, self.seed + self.seeds)
