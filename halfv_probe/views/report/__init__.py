"""A profile as one web page that needs no network.

>>> from halfv_probe.views.report import map_tokens, write_report
>>> write_report(profile, "report.html", map_tokens(model, processor, samples, profile))  # doctest: +SKIP
"""

from halfv_probe.views.report.document import check_report_path, write_report
from halfv_probe.views.report.overlays import TokenMap, map_tokens

__all__ = ["TokenMap", "check_report_path", "map_tokens", "write_report"]
