# SPDX-License-Identifier: Apache-2.0
"""Draws lines over a few sizes as an SVG of small panels: all the plotting that docs/performance-table.md needs."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, ACROSS = 240, 190, 4  # of a panel, in pixels, and panels in a line
LEFT, TOP, RIGHT, BOTTOM = 16, 44, 40, 24  # around what is drawn in a panel
COLOURS = ("#0b6e4f", "#c1440e", "#7a5ea8", "#333333")


def text(x: float, y: float, what: str, colour: str = "#333333", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(what)}</text>'


def panel(title: str, lines: Mapping[str, Sequence[float]], sizes: Sequence[str], x: float, y: float) -> list[str]:
    """One panel with its left upper corner at x, y. The vertical axis begins at zero and ends at the greatest value."""
    most = max((value for values in lines.values() for value in values), default=0.0) or 1.0
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    count = max((len(values) for values in lines.values()), default=0)
    step = across / max(count - 1, 1)
    ground = y + HEIGHT - BOTTOM
    drawn = [text(x + LEFT, y + 16, title), text(x + LEFT, y + TOP - 8, f"{most:,.4g}", "#777777")]
    drawn.append(f'<path d="M{x + LEFT},{y + TOP} V{ground} H{x + LEFT + across:.1f}" stroke="#bbbbbb" fill="none"/>')
    for number, size in enumerate(sizes[:count]):
        drawn.append(text(x + LEFT + number * step, ground + 16, size, "#777777", "middle"))
    for colour, values in zip(COLOURS, lines.values(), strict=False):
        points = [(x + LEFT + number * step, ground - down * value / most) for number, value in enumerate(values)]
        path = " ".join(f"{across_x:.1f},{up_y:.1f}" for across_x, up_y in points)
        drawn.append(f'<polyline points="{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        drawn += [f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="{colour}"/>' for cx, cy in points]
    return drawn


def panels(shown: Mapping[str, Mapping[str, Sequence[float]]], sizes: Sequence[str]) -> str:
    """A panel for each title, with a line for each name; the names are the same in all panels."""
    names = list(next(iter(shown.values())))
    height = 30 + -(-len(shown) // ACROSS) * HEIGHT
    drawn = []
    for number, name in enumerate(names):
        drawn.append(text(LEFT + 130 * number, 20, f"\N{BLACK CIRCLE} {name}", COLOURS[number]))
    for number, (title, lines) in enumerate(shown.items()):
        drawn += panel(title, lines, sizes, number % ACROSS * WIDTH, 30 + number // ACROSS * HEIGHT)
    size = f'width="{ACROSS * WIDTH}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12"'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', ground, *drawn, "</svg>", ""])
