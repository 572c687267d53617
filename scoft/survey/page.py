"""analysis.md: a survey's results, in plain words first, then tables and figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from scoft.cultures import culture_words
from scoft.files import sole_writer, write_atomically
from scoft.pages import Bold, markdown_text, table, with_interval
from scoft.survey.agreement import Agreement
from scoft.survey.analysis import Analysis, Parts, analyze, write_analysis
from scoft.survey.bootstrap import Number
from scoft.survey.figures import write_figures
from scoft.survey.pairs import Standing
from scoft.survey.problems import Problems, sentences
from scoft.survey.rankings import rankings_of
from scoft.survey.ranks import ALL, PAPER, best_of
from scoft.survey.responses import FAST
from scoft.survey.schema import ITEMS, Response


logger = logging.getLogger(__name__)

PAGE_FILE = "analysis.md"
ITEM_WORDS = {
    ALL: "all items",
    "alignment": "best described",
    "culture": "most culturally representative",
    "stereotypes": "least stereotypical",
    "offensiveness": "least offensive",
}


def report(rows: Sequence[Response], problems: Problems, output: Path):
    """Analyse the responses, and write page, figures and analysis.json. Raises DataError."""
    rankings = rankings_of(rows)
    with sole_writer(output, flag="--output"):
        analysis = analyze(rankings, problems.by_kind)
        write_analysis(output, analysis)
        figures = list(write_figures(output, rankings, analysis))
        lines = [*plain_words(analysis), *answers_section(analysis), *tables(analysis), "", "## Figures"]
        for words, file in figures:
            lines += ["", f"![{markdown_text(words)}]({file})", "", f"*{markdown_text(words)}*"]
        lines += ["", "## How it was measured", "", *method_lines(analysis)]
        write_atomically(output / PAGE_FILE, "\n".join(lines) + "\n")
    logger.info("The page is %s", output / PAGE_FILE)


def text_of(number: Number, decimals: int = 2) -> str:
    """'1.84 [1.71, 1.96]'; nothing where there is no number."""
    return with_interval(number.bounds, decimals) if number.value is not None else ""


def overall_ranks(analysis: Analysis) -> dict[str, Number]:
    return analysis.mean_ranks.mean_of_cultures[ALL]


# ---------------------------------------------------------------------------------------------------------------------
# In plain words
# ---------------------------------------------------------------------------------------------------------------------


def plain_words(analysis: Analysis) -> list[str]:
    """What was asked, who came out best, how sure that is, and what to keep in mind."""
    counts, means = analysis.counts, overall_ranks(analysis)
    cultures = ", ".join(f"{number} of {culture_words(culture)}" for culture, number in counts.participants.items())
    best, second = analysis.methods[:2]
    rate = analysis.win_rates[ALL][best][second]
    wins = (
        f"Of two pictures by {best} and {second}, {best}'s was found better {percent(rate)} of the time. "
        f"{clarity(rate, best, second)}"
        if rate.value is not None
        else f"{best} and {second} were never compared."
    )
    lines = [
        "# What people said of the pictures",
        "",
        markdown_text(
            f"{sum(counts.participants.values())} participants ({cultures}) ranked pictures by "
            f"{len(analysis.methods)} methods, 1 the best, in {counts.rankings} rankings."
        ),
        "",
        markdown_text(
            "By mean rank, from the best to the last: "
            f"{', '.join(f'{method} {text_of(means[method])}' for method in analysis.methods)}. {wins}"
        ),
        "",
        markdown_text(items_words(analysis)),
        "",
        markdown_text(consensus_words(analysis)),
    ]
    for warning in analysis.warnings:
        lines += ["", f"> **Mind:** {markdown_text(warning)}"]
    return lines


def percent(number: Number) -> str:
    shares = [f"{share:.0%}" for share in number.bounds]
    return f"{shares[0]} [{', '.join(shares[1:])}]" if shares[1:] else "".join(shares)


def clarity(rate: Number, best: str, second: str) -> str:
    if rate.low is None:
        return "How certain that is, so few participants cannot say."
    if rate.low > 0.5:
        return "Other participants would hardly have said otherwise."
    return f"Other participants might have put {second} before {best}: the interval holds 50%."


def items_words(analysis: Analysis) -> str:
    means = analysis.mean_ranks.mean_of_cultures
    winners = {item: best_of(means[item]) for item in ITEMS if item in means}
    if len(set(winners.values())) == 1:
        return f"In every item {next(iter(winners.values()))} has the best mean rank."
    told = "; ".join(f"{ITEM_WORDS[item]}: {method}" for item, method in winners.items())
    return f"Which method has the best mean rank depends on the item ({told})."


def consensus_words(analysis: Analysis) -> str:
    """The order by MMSR and votes, and which cultures have another."""
    overall = order_words(analysis.consensus.parts["overall"][ALL])
    told = f"The consensus of the participants (MMSR and votes) is {overall}."
    other = {
        culture: order
        for culture, found in analysis.consensus.parts["culture"].items()
        if (order := order_words(found)) != overall
    }
    if len(analysis.consensus.parts["culture"]) > 1:
        told += (
            " Every culture alone has the same."
            if not other
            else " Another one has "
            + "; ".join(f"{culture_words(each)}: {order}" for each, order in other.items())
            + "."
        )
    return told


def order_words(found: Mapping[str, Standing]) -> str:
    """'mpc, mp, m, base'; 'm = mp' where none of two is before the other."""
    told, before = "", None
    for method, standing in found.items():
        told += method if before is None else f"{' =' if standing.beats == before else ','} {method}"
        before = standing.beats
    return told


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def answers_section(analysis: Analysis) -> list[str]:
    """What the answers are, what was left out, and what was flagged."""
    counts = analysis.counts
    flagged = ", ".join(f"{number} {flag}" for flag, number in counts.flagged.items())
    lines = [
        "",
        "## The answers",
        "",
        *table(
            ["", "participants", "pages"],
            [[culture_words(each), number, counts.pages[each]] for each, number in counts.participants.items()],
        ),
        "",
        f"Of {counts.rankings} rankings (an item of a page by a participant) {counts.complete} rank every picture, "
        f"{counts.with_gaps} leave some out, {counts.blank} all. {counts.with_ties} have ties, in {counts.tied_pairs} "
        "pairs; a tie is half a win, and no comparison for MMSR, Noisy Bradley-Terry and Plackett-Luce.",
        "",
        f"Flagged rankings: {markdown_text(flagged)}. They are kept in all numbers, but for these mean ranks "
        "(means of the cultures):",
        "",
        *table(
            ["left out", *analysis.methods],
            [
                [name, *(text_of(each[method]) for method in analysis.methods)]
                for name, each in analysis.without_flagged.items()
            ],
        ),
    ]
    if analysis.problems:
        lines += ["", "What could not be used:", ""]
        lines += [f"- {markdown_text(sentence)}" for sentence in sentences(analysis.problems)]
    return lines


def tables(analysis: Analysis) -> list[str]:
    means = analysis.mean_ranks
    lines = [
        "",
        "## Mean ranks (as the paper's Table 1)",
        "",
        "Less is better. Means of the cultures, each alike:",
        "",
    ]
    lines += ranks_table(means.mean_of_cultures, analysis.methods)
    if len(analysis.counts.participants) > 1:
        lines += ["", "Pooled, each answer alike:", "", *ranks_table(means.pooled, analysis.methods)]
        for culture, each in means.by_culture.items():
            lines += ["", f"{markdown_text(culture_words(culture))}:", "", *ranks_table(each, analysis.methods)]
    if printed := [method for method in analysis.methods if method in PAPER]:
        lines += ["", "The paper's, of its own pictures and participants, over its five cultures:", ""]
        lines += table(
            ["", *map(ITEM_WORDS.get, ITEMS)], [[each, *(f"{rank:.2f}" for rank in PAPER[each])] for each in printed]
        )
    lines += [
        "",
        "## Which of two is better",
        "",
        "How often the row's picture was found better than the column's:",
        "",
    ]
    for item, rates in analysis.win_rates.items():
        lines += [f"{ITEM_WORDS[item].capitalize()}:", "", *rates_table(rates, analysis.methods), ""]
    lines += ["## Scores", "", "More is better; the mean of a row is 0. Plackett-Luce:", ""]
    lines += scores_table(analysis.plackett_luce, analysis.methods)
    lines += ["", "Noisy Bradley-Terry:", "", *scores_table(analysis.noisy_bradley_terry, analysis.methods)]
    lines += ["", "Noisy Bradley-Terry as in the paper, by crowd-kit as it comes, from 0 to 1:", ""]
    lines += scores_table({"overall": {ALL: analysis.noisy_bradley_terry_as_in_the_paper}}, analysis.methods)
    return [*lines, "", "## Do participants agree?", "", *agreement_lines(analysis.agreement)]


def ranks_table(means: Mapping[str, Mapping[str, Number]], methods: Sequence[str]) -> list[str]:
    """Methods as rows, items as columns, the best of an item bold."""
    best = {item: best_of(each) for item, each in means.items()}
    return table(
        ["", *(ITEM_WORDS[item] for item in means)],
        [
            [
                method,
                *(
                    Bold(text_of(each[method])) if method == best[item] else text_of(each[method])
                    for item, each in means.items()
                ),
            ]
            for method in methods
        ],
    )


def rates_table(rates: Mapping[str, Mapping[str, Number]], methods: Sequence[str]) -> list[str]:
    """Bold: the interval leaves out a half."""

    def cell(a: str, b: str) -> str:
        rate = rates.get(a, {}).get(b)
        if rate is None or rate.value is None:
            return ""
        sure = rate.low is not None and not rate.low <= 0.5 <= rate.high
        return Bold(percent(rate)) if sure else percent(rate)

    return table(["", *methods[1:]], [[a, *(cell(a, b) for b in methods[1:])] for a in methods[:-1]])


def scores_table(parts: Parts, methods: Sequence[str]) -> list[str]:
    rows = []
    for part, panels in parts.items():
        for which, scores in panels.items():
            name = "overall" if part == "overall" else culture_words(which) if part == "culture" else ITEM_WORDS[which]
            rows.append([name, *(text_of(scores[method]) for method in methods)])
    return table(["", *methods], rows)


def agreement_lines(found: Mapping[str, Mapping[str, Agreement | None]]) -> list[str]:
    """Kendall's W and its corrected form."""

    def cell(each: Agreement | None) -> str:
        return f"{each.correlation:.2f} (W {each.w:.2f})" if each else ""

    items = list(dict.fromkeys(item for by_item in found.values() for item in by_item))
    return [
        "Mean rank correlation of two participants on a page, 1 where all agree and 0 where they answer at random, "
        "and Kendall's W, which random answers of k participants bring to 1 / k:",
        "",
        *table(
            ["", *(ITEM_WORDS[item] for item in items)],
            [
                [culture_words(culture), *(cell(by_item.get(item)) for item in items)]
                for culture, by_item in found.items()
            ],
        ),
    ]


def method_lines(analysis: Analysis) -> list[str]:
    return [
        f"Intervals hold {analysis.confidence:.0%}, over participants drawn anew within their culture "
        f"({analysis.draws} draws; Noisy Bradley-Terry: from the slopes of its likelihood by participant). They are "
        "for other participants and the same pages.",
        "",
        "MMSR is crowd-kit's, in each culture, 10,000 iterations to 1e-10; its labels are a vote weighted by its "
        "skills, the majority over questions decides a pair, and the pairs won an order (Copeland). Noisy "
        "Bradley-Terry is ours, with the right gradient and a penalty; crowd-kit's stands beside it as the paper used "
        "it, which is not at its model's optimum. Plackett-Luce is choix'. Agreement is of complete rankings.",
        "",
        f"`fast`: less than {FAST:.0%} of the page's median time. `straight_lined`: all items of the page have the "
        "same ranks by position, and so have more pages of that participant than chance brings to one in a hundred.",
        "",
        "A minority is looked for where participants hardly agree: the groups are found on every other page, and told "
        "if on the other pages too each has its own winner, by an interval that leaves out 0.",
    ]
