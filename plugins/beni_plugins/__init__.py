"""The parts that come with beni, one module per part. They register like anybody else's."""
