"""Where the weights will be, from where they have been: later models out of early checkpoints.

`predict` fits every tensor of a series of checkpoints and writes the model that the fits foretell.
The methods: RELEX, AlphaRL, a line for each weight, the last update times a factor, its rank k,
stopping. `assess` tells what each did on checkpoints that it did not see; `rank_study` rebuilds an
update from a few of its directions.
"""

from offaxis.predict.alpharl import AlphaRL
from offaxis.predict.assessing import Assessment, assess
from offaxis.predict.choosing import best_factor
from offaxis.predict.goal import Goal
from offaxis.predict.linear import Linear, Stop
from offaxis.predict.methods import Fitted, Predictor, Timeline, Trail, Weighted
from offaxis.predict.predicting import method_named, predict, predict_series
from offaxis.predict.prediction import Prediction
from offaxis.predict.ranks import RankStudy, rank_study
from offaxis.predict.rebuilding import RankK
from offaxis.predict.relex import Relex
from offaxis.predict.scale import LADDER, Ladder, Scale, climb
from offaxis.predict.scores import Scores, match_scores
from offaxis.predict.series import Point, Series, open_series
from offaxis.predict.surveying import Survey, survey
from offaxis.predict.table import METHODS

__all__ = [
    "LADDER",
    "METHODS",
    "AlphaRL",
    "Assessment",
    "Fitted",
    "Goal",
    "Ladder",
    "Linear",
    "Point",
    "Prediction",
    "Predictor",
    "RankK",
    "RankStudy",
    "Relex",
    "Scale",
    "Scores",
    "Series",
    "Stop",
    "Survey",
    "Timeline",
    "Trail",
    "Weighted",
    "assess",
    "best_factor",
    "climb",
    "match_scores",
    "method_named",
    "open_series",
    "predict",
    "predict_series",
    "rank_study",
    "survey",
]
