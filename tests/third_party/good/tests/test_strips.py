from beni.testing import ConnectorConformance


class TestStrips(ConnectorConformance):
    part = "strips"
