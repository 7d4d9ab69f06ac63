"""Ordinary text that a bundle is compared on: prose, advice, code, and a table with numbers."""

PASSAGES = (
    "The lighthouse stood at the end of a narrow road, and for most of the year nobody "
    "came there but the keeper and the man who brought the mail. When the storms began in "
    "October, the keeper read the same four books again and wrote long letters to his "
    "sister in the city. She answered every one of them, although she often asked him why "
    "he stayed. He never found a good reason. He liked the sound of the water, he wrote, "
    "and he liked to know that the ships out there could see him, even if he could not "
    "always see them.\n",
    "Here are three ways to save energy at home. First, turn down the heating by one "
    "degree: this alone can lower the bill by about six percent. Second, wash clothes at "
    "30 instead of 60 degrees Celsius, because most of the electricity is used to heat the "
    "water. Third, look for devices that are never switched off. A television in standby "
    "uses little power, but it does so for 24 hours a day. You can measure it with a plug "
    "that costs less than twenty dollars. If you do all of this, you will probably save "
    "between 150 and 300 dollars each year.\n",
    "def read_words(path, min_length=3):\n"
    '    """Counts the words of a file, without the short ones."""\n'
    "    counts = {}\n"
    '    with open(path, encoding="utf-8") as file:\n'
    "        for line in file:\n"
    "            for word in line.lower().split():\n"
    '                word = word.strip(".,;:!?")\n'
    "                if len(word) >= min_length:\n"
    "                    counts[word] = counts.get(word, 0) + 1\n"
    "    return sorted(counts.items(), key=lambda item: item[1], reverse=True)\n"
    "\n"
    "\n"
    "for word, count in read_words('text.txt')[:10]:\n"
    "    print(f'{count:5d}  {word}')\n",
    "| Planet | Distance from the Sun | Length of a year |\n"
    "|---|---|---|\n"
    "| Mercury | 58 million km | 88 days |\n"
    "| Venus | 108 million km | 225 days |\n"
    "| Earth | 150 million km | 365 days |\n"
    "| Mars | 228 million km | 687 days |\n"
    "\n"
    "In 1969, Apollo 11 landed on the Moon, and the crew spent 21 hours and 36 minutes "
    "there. Mars is much farther away: a spacecraft needs about seven months to reach it. "
    '"How long would it take by car?" asked the girl. "At 100 kilometers an hour," said '
    'her teacher, "and if there were a road, about two hundred and sixty years."\n',
)
"""Each passage has at least 100 tokens in any usual vocabulary."""

NUM_TOKENS = 100
"""Tokens of a passage that are compared, so about 400 of all passages."""
