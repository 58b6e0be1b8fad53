"""What is in the data and what is wrong with it, in numbers and in sentences, before anything is trained on it.

    report = check_store(store)        # or check_pairs(pairs, held_out)
    print("\\n".join(report.lines()))
    write_page(report, Path("check.html"))

`votes` and `shares` are arithmetic, `surface` and `language` look at a text, `gather` goes over the pairs once, `bias` asks what
little things alone tell, `report` says it in words and `page` shows it.
"""

from preftune.data.checks.page import write_page
from preftune.data.checks.report import DataReport
from preftune.data.checks.run import check_pairs, check_store, prompts_in
from preftune.data.checks.votes import Votes, count_votes

__all__ = ["DataReport", "Votes", "check_pairs", "check_store", "count_votes", "prompts_in", "write_page"]
