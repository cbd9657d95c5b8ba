"""What a comparison found, small enough to send: no values, no names of tensors, no paths."""

from offaxis.comparison.contribution.identity import Named
from offaxis.comparison.contribution.making import contribute
from offaxis.comparison.contribution.pooling import Pool, pool
from offaxis.comparison.contribution.reading import read_contribution, write_contribution

__all__ = ["Named", "Pool", "contribute", "pool", "read_contribution", "write_contribution"]
