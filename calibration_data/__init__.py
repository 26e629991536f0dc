"""Pictures and questions to calibrate and judge vision-language models with.

>>> from halfv_data import load_samples
>>> samples = load_samples()              # the 100 that come with HalfV
>>> samples[0].question, samples[0].answer
('What color is the triangle?', 'red')

``scenes`` draws new ones; ``halfv_data.drawing`` and ``halfv_data.questions`` hold what they are made of.
"""

from halfv_data.errors import DataError
from halfv_data.load import load_data, load_samples, shipped_question
from halfv_data.pictures import Picture, Video, is_picture, open_image
from halfv_data.questions import TASKS
from halfv_data.rows import Reading
from halfv_data.samples import Sample, fingerprint, scenes

__all__ = [
    "TASKS",
    "DataError",
    "Picture",
    "Reading",
    "Sample",
    "Video",
    "fingerprint",
    "is_picture",
    "load_data",
    "load_samples",
    "open_image",
    "scenes",
    "shipped_question",
]
