"""Names that others have."""

from torch import Tensor

from beni.interfaces import Connector, ConnectorConfig
from beni.types import Features, Grid


class Keep(ConnectorConfig):
    def out_grid(self, grid: Grid) -> Grid:
        return grid


class Other(Connector):
    """The first channels of every token, whatever they are."""

    beni_api = 1
    Config = Keep

    def project(self, features: Features) -> Tensor:
        return features.tokens_ND[:, : self.out_width]
