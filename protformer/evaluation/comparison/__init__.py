"""Runs held against one another: `protformer compare`.

reading         which runs there are, and what they wrote; members that did not end
comparability   which of them may stand in one table, and which settings tell them apart
statistics      means, spreads, paired intervals, the share of the gap between uniform and exact
comparison      all of it for one comparison; `answer`: in sentences; `paper`: the paper's own figures
charts, tables  pictures and tables as plain data; `pictures`: those of a comparison
drawing, page   the pictures as files, and everything as one page
sections, report what stands where, and where it is written
"""

from protformer.evaluation.comparison.comparison import Comparison, compare
from protformer.evaluation.comparison.report import Report, check_output, make_report, write_report

__all__ = ["Comparison", "Report", "check_output", "compare", "make_report", "write_report"]
