"""The rows of ``top_batsmen``: approximate career figures of men's international cricket, typed by hand.

They are close to the public record and good enough to ask questions about; they are not a source to quote. Everyone
here has at least one ODI. Columns: name, country, ODI runs, T20 international runs, Test runs, year of ODI debut.
"""

from __future__ import annotations

TABLE = "top_batsmen"
SCHEMA = f"""CREATE TABLE {TABLE} (
    player_name TEXT,
    country_name TEXT,
    odi_runs INTEGER,
    t20_runs INTEGER,
    test_runs INTEGER,
    odi_debut_year INTEGER
)"""

Player = tuple[str, str, int, int, int, int]

_FIGURES = {
    "India": """
        Sachin Tendulkar 18426 10 15921 1989 / Virat Kohli 14181 4188 9230 2008 / Sourav Ganguly 11363 0 7212 1992
        Rohit Sharma 11168 4231 4301 2007 / Rahul Dravid 10889 31 13288 1996 / MS Dhoni 10773 1617 4876 2004
        Yuvraj Singh 8701 1177 1900 2000 / Virender Sehwag 8273 394 8586 1999 / Shikhar Dhawan 6793 1759 2315 2010
        Suresh Raina 5615 1605 768 2005 / KL Rahul 3043 2265 3257 2016 / Shreyas Iyer 2845 1104 811 2017
        Shubman Gill 2775 578 1893 2019 / Hardik Pandya 1904 1812 532 2016 / Ishan Kishan 933 796 78 2021""",
    "Australia": """
        Ricky Ponting 13704 401 13378 1995 / Adam Gilchrist 9619 272 5570 1996 / Mark Waugh 8500 0 8029 1988
        Michael Clarke 7981 488 8643 2003 / Steve Waugh 7569 0 10927 1986 / David Warner 6932 3277 8786 2009
        Matthew Hayden 6133 308 8625 1993 / Steve Smith 5800 1094 10271 2010 / Aaron Finch 5406 3120 278 2013
        Travis Head 2645 1093 3413 2016 / Marnus Labuschagne 1871 12 4435 2020""",
    "Sri Lanka": """
        Kumar Sangakkara 14234 1382 12400 2000 / Sanath Jayasuriya 13430 629 6973 1989
        Mahela Jayawardene 12650 1493 11814 1998 / Tillakaratne Dilshan 10290 1889 5492 1999
        Aravinda de Silva 9284 0 6361 1984 / Marvan Atapattu 8529 0 5502 1990 / Angelo Mathews 5916 1416 8167 2008
        Kusal Mendis 4215 1790 4492 2016""",
    "Pakistan": """
        Inzamam-ul-Haq 11739 6 8830 1991 / Mohammad Yousuf 9720 50 7530 1998 / Saeed Anwar 8824 0 4052 1989
        Shahid Afridi 8064 1405 1716 1996 / Shoaib Malik 7534 2423 1898 1999 / Younis Khan 7249 442 10099 2000
        Babar Azam 6291 4223 4235 2015 / Fakhar Zaman 3492 1848 192 2017""",
    "South Africa": """
        Jacques Kallis 11579 666 13289 1996 / AB de Villiers 9577 1672 8765 2005 / Hashim Amla 8113 1277 9282 2008
        Herschelle Gibbs 8094 400 6167 1996 / Graeme Smith 6989 982 9265 2002 / Quinton de Kock 6770 2584 3300 2013
        Faf du Plessis 5507 1528 4163 2011 / David Miller 4611 2437 36 2010 / Aiden Markram 2380 1451 2875 2017""",
    "West Indies": """
        Chris Gayle 10480 1899 7214 1999 / Brian Lara 10405 0 11953 1990 / Shivnarine Chanderpaul 8778 343 11867 1994
        Desmond Haynes 8648 0 7487 1978 / Viv Richards 6721 0 8540 1975 / Marlon Samuels 5606 1611 3917 2000
        Shai Hope 5445 1053 1899 2016""",
    "New Zealand": """
        Ross Taylor 8607 1909 7683 2006 / Stephen Fleming 8037 110 7172 1994 / Martin Guptill 7346 3531 2586 2009
        Nathan Astle 7090 74 4702 1995 / Kane Williamson 7235 2575 9276 2010 / Brendon McCullum 6083 2140 6453 2002
        Tom Latham 4362 516 5834 2012""",
    "England": """
        Eoin Morgan 7701 2458 700 2006 / Joe Root 6859 893 13006 2013 / Ian Bell 5416 188 7727 2004
        Jos Buttler 5237 3700 2907 2012 / Kevin Pietersen 4440 1176 8181 2004 / Jonny Bairstow 3868 1671 6042 2011
        Alastair Cook 3204 61 12472 2006 / Ben Stokes 3463 585 6728 2011""",
    "Bangladesh": """
        Tamim Iqbal 8357 1758 5134 2007 / Mushfiqur Rahim 7795 1500 6038 2006 / Shakib Al Hasan 7570 2551 4609 2006
        Mahmudullah 5689 2444 2914 2007 / Soumya Sarkar 2359 1462 831 2014 / Litton Das 2569 2020 2655 2015""",
}


def _parse(country: str, text: str) -> list[Player]:
    players = []
    for entry in text.replace("\n", "/").split("/"):
        if entry.strip():
            *name, odi, t20, test, debut = entry.split()
            players.append((" ".join(name), country, int(odi), int(t20), int(test), int(debut)))
    return players


PLAYERS: tuple[Player, ...] = tuple(player for country, text in _FIGURES.items() for player in _parse(country, text))
COUNTRIES: tuple[str, ...] = tuple(_FIGURES)
