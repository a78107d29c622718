"""The office of the pocket world: people, firms, and families of small tasks that end in an e-mail.

`FAMILIES` are pre-trained on and make ``data/pocket/office``; `RECOMBINED` are other tasks with their facts; `HELD` never
occur in pre-training, nor do the people, firms and projects of `HELD_WORDS`.
"""

from dataclasses import dataclass

from tools.pocket.grammar import forms, names


@dataclass(frozen=True)
class Fact:
    """Something that an agent looks up: which tool, with what query, and the sentence that it finds."""

    tool: str
    query: str
    hint: str  # how the task points to it
    text: str


@dataclass(frozen=True)
class Family:
    """One kind of office task."""

    name: str
    description: str
    thing: str  # the matter as a noun phrase, "the late invoice from {firm}"
    subject: str
    tasks: tuple[str, ...]
    facts: tuple[Fact, ...]
    points: tuple[str, ...]
    asks: tuple[str, ...]


TOOL_ARGUMENT = {
    "contacts.lookup": "name",
    "calendar.find": "title",
    "documents.search": "query",
    "policy.find": "topic",
}

WORDS: dict[str, list[str]] = {
    "first": names(
        """Anna, Ben, Clara, David, Emma, Frank, Grace, Henry, Iris, Jack, Kate, Leo, Maria, Nina, Oscar, Paul, Rosa,
        Sam, Tara, Victor, Wendy, Adam, Bella, Carl, Diana, Eric, Fiona, George, Helen, Ivan, Julia, Kevin, Laura,
        Mark, Nora, Oliver, Peter, Ruth, Simon, Tina, Walter, Alice, Bruno, Chloe, Daniel, Eva, Felix, Gina, Hugo,
        Ines, Jonas, Karen, Lucas, Monica, Nick, Olga, Pedro, Rita, Steve, Theo, Vera, Will, Amir, Dara, Lin, Mei,
        Omar, Priya, Raj, Sofia"""
    ),
    "last": names(
        """Adams, Baker, Clark, Dixon, Evans, Foster, Grant, Hall, Irving, Jones, King, Lane, Moore, Nash, Owens,
        Parker, Reed, Scott, Turner, Vance, Walsh, Young, Abbott, Brooks, Cole, Drake, Ellis, Ford, Gray, Hunt,
        Jensen, Kane, Lopez, Miller, Novak, Ortiz, Price, Rossi, Stone, Tanaka, Weber, Chen, Haddad, Kim, Patel,
        Silva, Santos, Berg, Fischer, Keller"""
    ),
    "firm": names(
        """Northwind, Brightline, Oakfield, Bluestar, Ironworks, Redwood, Clearwater, Sunridge, Stonegate, Fairview,
        Riverside, Highland, Lakeshore, Greenleaf, Westbrook, Eastgate, Summit, Harbor, Pioneer, Anchor, Beacon,
        Crown, Delta, Falcon, Granite, Horizon, Keystone, Liberty, Maple, Neptune, Orbit, Pinecrest, Quartz, Rocket,
        Silver, Titan, Union, Valley, Willow, Zenith"""
    ),
    "project": names(
        """Aurora, Bison, Comet, Dolphin, Ember, Forest, Galaxy, Harvest, Island, Jupiter, Kestrel, Lotus, Meadow, Nova,
        Ocean, Panda, Raven, Saturn, Tiger, Unicorn, Violet, Whale, Yellow, Zebra"""
    ),
}

HELD_WORDS: dict[str, list[str]] = {
    "first": names(
        """Mira, Tobias, Selma, Gideon, Yara, Casper, Odette, Ruben, Ingrid, Malik, Petra, Dmitri, Lena, Joel, Zoe,
        Hamid, Astrid, Boris, Celia, Edgar, Farah, Igor, Kofi, Naomi"""
    ),
    "last": names(
        """Holt, Lindqvist, Okafor, Marsh, Voss, Castillo, Nakamura, Quinn, Yilmaz, Ferreira, Sorensen, Bauer, Dupont,
        Huang, Kowalski, Mbeki, Romano, Thorne, Ueda, Zimmer"""
    ),
    "firm": names(
        """Copperhill, Mosswood, Vantage, Larkspur, Ravenna, Tideway, Foxglove, Hollybrook, Cobalt, Juniper, Mistral,
        Sable"""
    ),
    "project": names(
        "Heron, Basalt, Magnolia, Cyclone, Otter, Sequoia, Tundra, Walnut, Pelican, Obsidian, Thistle, Lynx"
    ),
}

SHARED_WORDS: dict[str, list[str]] = {
    "day": names("Monday, Tuesday, Wednesday, Thursday, Friday"),
    "day2": names("Monday, Tuesday, Wednesday, Thursday, Friday"),
    "time": names(
        "8:30, 9:00, 9:30, 10:00, 10:30, 11:00, 13:00, 13:30, 14:00, 14:30, 15:00, 15:30, 16:00, 16:30"
    ),
    "time2": names("8:00, 9:15, 10:15, 11:30, 12:00, 13:15, 14:15, 15:15, 16:15, 17:00"),
    "amount": names(
        "240, 310, 380, 450, 520, 640, 720, 860, 950, 1100, 1250, 1400, 1800, 2300, 2700, 3200, 4500"
    ),
    "count": names("two, three, four, five, six, seven, eight, nine, ten, twelve, fifteen, twenty"),
    "code": names("A12, A47, B08, B31, C19, C75, D22, D64, E05, E58, F13, F90, G27, G36, H41, H88, K03, K72"),
    "room": names(
        "the Oak room, the Pine room, the Elm room, the Cedar room, the Birch room, room 2, room 4, room 7"
    ),
    "month": names("January, March, April, May, June, July, September, October, November"),
    "team": names("sales, support, design, finance, research, legal, marketing, planning"),
    "role": names(
        "sales manager, team lead, accountant, designer, engineer, office manager, analyst, assistant, buyer, editor"
    ),
}

# What fits any task; half of the requests come from here, so that a new kind of task is no surprise.
POINTS = tuple(
    forms("""
    I [checked|looked at] the [records|files] [today|this morning].
    This [matters|is important] for [our|the] [plans|team|customer].
    I know that you are busy.
    I [want|wanted] you to [know|hear] it [early|from me|now].
    [Nothing|Not much] else [changes|is new].
    [Here are|These are] the facts.
    """)
)
ASKS = tuple(
    forms("""
    Please [answer|reply|write back] by {day2}.
    [Can|Could] you [confirm|check] this [by {day2}|this week|today]?
    Please [tell|let] me [know|hear] if you have [questions|any doubts].
    [Call|Write to] me if [anything|something] is [unclear|missing].
    Please [tell|write] me what you [need|prefer].
    What do you [think|say]?
    Please [take care of|look at] it [by {day2}|this week|soon].
    """)
)


def _fact(line: str) -> Fact:
    return Fact(*(part.strip() for part in line.split("::")))


def _family(
    name: str, description: str, thing: str, subject: str, tasks: str, facts: str, points: str, asks: str
) -> Family:
    return Family(
        name,
        description,
        thing,
        subject,
        tuple(forms(tasks)),
        tuple(_fact(line) for line in forms(facts)),
        tuple(forms(points)),
        tuple(forms(asks)),
    )


FAMILIES = (
    _family(
        "unpaid_bill",
        "A customer has not paid a bill.",
        "the unpaid bill from {firm}",
        "Bill {code}",
        """
        {full} at {firm} has not paid our bill. Remind [{him}|the customer].
        Remind {full} of {thing}.
        """,
        """
        documents.search :: {firm} bill :: the bill :: Bill {code} is {amount} dollars and was due on {day}.
        policy.find :: late payment :: the payment rule :: A late payment adds a fee of {count} percent.
        """,
        """
        We have not seen [a|your] payment [yet|so far].
        [Maybe|Perhaps] the bill was [lost|missed].
        """,
        """
        Please [pay|send the payment] by {day2}.
        [Can|Could] you [tell me|say] when you will pay?
        """,
    ),
    _family(
        "moved_workshop",
        "A workshop has a new date.",
        "the {project} workshop",
        "New date for the {project} workshop",
        """
        {thing} was moved. Tell {full}.
        Let {full} know the new date of {thing}.
        """,
        """
        calendar.find :: {project} workshop :: the calendar :: The {project} workshop is now on {day} at {time} in {room}.
        """,
        """
        The [old|first] date [does not work|is gone].
        [Everything|All] else [stays|is] the same.
        """,
        """
        Please [confirm|tell me] that you can [come|join].
        [Can|Could] you [make it|be there] [on {day}|at {time}]?
        """,
    ),
    _family(
        "missed_call",
        "Somebody missed a call with a customer.",
        "the missed call with {firm}",
        "Our call",
        """
        We missed the call with {full} from {firm}. [Offer|Find] a new time.
        Write to {full} about {thing} and offer a new time.
        """,
        """
        calendar.find :: {firm} call :: my calendar :: The next free slot is {day} at {time}.
        documents.search :: {firm} agenda :: the agenda :: The agenda has {count} points about {project}.
        """,
        """
        Nobody [called|rang] you [at the agreed time|as planned].
        [It was|That was] a mistake in our calendar.
        """,
        """
        [Does|Would] {day} at {time} work for you?
        Please [pick|choose] a time that [suits|works for] you.
        """,
    ),
    _family(
        "broken_laptop",
        "A laptop needs a repair.",
        "the broken laptop",
        "Laptop {code}",
        """
        My laptop is broken. Ask {full} for a [repair|new one].
        Write to {full} in {team} about {thing}.
        """,
        """
        documents.search :: laptop {code} :: the device list :: Laptop {code} is {count} years old and under warranty.
        policy.find :: device repair :: the device rule :: A repair takes {count} days, and a spare device is free.
        """,
        """
        The screen [stays|is] black [after the start|since {day}].
        I need it for [work on {project}|the {project} project].
        """,
        """
        [Can|Could] you [look at|repair] it [this week|on {day}]?
        Please [send|lend] me a spare [device|laptop].
        """,
    ),
    _family(
        "project_delay",
        "A project is late and somebody has to be told.",
        "the delay of {project}",
        "{project} is late",
        """
        {project} will be late. Tell {full} [at {firm}|].
        Write to {full} about {thing}.
        """,
        """
        documents.search :: {project} status :: the status report :: {project} is {count} days late, because a part is missing.
        calendar.find :: {project} launch :: the launch date :: The new launch of {project} is on {day} in {month}.
        policy.find :: project delays :: the rule on delays :: A delay of more than {count} days needs a written plan.
        """,
        """
        The [team|work] needs more time [than planned|for the tests].
        We [keep|hold] the [budget|price] as agreed.
        """,
        """
        Please [move|change] your plans [to the new date|if you can].
        [Tell|Write to] me if this is a problem [for you|for your team].
        """,
    ),
    _family(
        "welcome_colleague",
        "A new colleague starts.",
        "the first day of {full}",
        "Your first day",
        """
        {full} starts in {team} [next week|soon]. [Write|Send] a welcome.
        Welcome our new colleague {full} to the {team} team.
        """,
        """
        calendar.find :: first day {first} :: the plan for the first day :: The first day is {day} at {time} in {room}.
        documents.search :: welcome guide :: the welcome guide :: New colleagues need a badge and form {code}.
        """,
        """
        The {team} team is [happy|ready] to [meet|see] you.
        Your desk and your laptop are [ready|set up].
        """,
        """
        Please [bring|take along] [your papers|a photo] on {day}.
        [Ask|Call] me if you [need|miss] anything.
        """,
    ),
    _family(
        "thanks_help",
        "Somebody helped and deserves thanks.",
        "your help with {project}",
        "Thanks for {project}",
        """
        {full} helped us with {project}. Send [our|my] thanks.
        Thank {full} for the help with {project}.
        """,
        """
        documents.search :: {project} result :: the result :: {project} ended {count} days early and saved {amount} dollars.
        calendar.find :: team lunch :: the team lunch :: The team lunch is on {day} at {time2}.
        """,
        """
        Your work [made|was] a [real|big] difference.
        The [customer|whole team] [noticed|saw] it.
        """,
        """
        Please [join|come to] our lunch on {day}.
        [Tell|Let] me [know|see] how we can help you [next time|in return].
        """,
    ),
    _family(
        "request_report",
        "A report is needed.",
        "the {month} report",
        "The {month} report",
        """
        I need {thing} from {full}. Ask for it.
        Ask {full} in {team} to send {thing}.
        """,
        """
        calendar.find :: {month} review :: the review date :: The {month} review is on {day} at {time}.
        documents.search :: report form :: the report form :: The report form is {code} and has {count} pages.
        """,
        """
        The board [reads|needs] it [before|at] the review.
        [Short|Simple] tables are [fine|enough].
        """,
        """
        Please send it [by|before] {day}.
        [Can|Could] you [finish|share] it [this week|by {day2}]?
        """,
    ),
    _family(
        "room_conflict",
        "Two groups want one room.",
        "the room conflict on {day}",
        "{room}",
        """
        We and {full} booked the same room. [Find a solution|Solve this].
        Write to {full} about {thing}.
        """,
        """
        calendar.find :: room on {day} :: the room calendar :: The free room on {day} at {time} is {room}.
        policy.find :: room booking :: the booking rule :: The larger group keeps the room.
        """,
        """
        Both groups [booked|need] the [same|big] room.
        We are {count} people, and we [need|use] the screen.
        """,
        """
        [Can|Could] you [take|use] {room} [instead|this time]?
        Please [tell|let] me [know|hear] which room you [want|prefer].
        """,
    ),
    _family(
        "travel_booking",
        "A business trip has to be arranged.",
        "the trip to {firm}",
        "Trip on {day}",
        """
        {full} visits {firm} [next week|soon]. [Send|Write] the travel details.
        Send {full} the details of {thing}.
        """,
        """
        documents.search :: {firm} ticket :: the ticket :: Train {code} leaves on {day} at {time} from track {count}.
        policy.find :: travel costs :: the travel rule :: A hotel may cost up to {amount} dollars.
        """,
        """
        The ticket is [paid|booked], and the hotel is [near the station|next door].
        {firm} [expects|waits for] you [at the gate|after the trip].
        """,
        """
        Please [keep|send me] the [bills|receipts].
        [Tell|Write to] me if you [need|want] another train.
        """,
    ),
    _family(
        "customer_complaint",
        "A customer complains about an order.",
        "your complaint about order {code}",
        "Order {code}",
        """
        {full} from {firm} complained about order {code}. Answer.
        Answer the complaint of {full} [at {firm}|about order {code}].
        """,
        """
        documents.search :: order {code} :: the order :: Order {code} left us {count} days late with {count} missing boxes.
        policy.find :: refunds :: the refund rule :: A late order gets {amount} dollars back.
        """,
        """
        The order [should|had to] [arrive|leave] [last week|sooner].
        The [missing|other] boxes [leave|ship] [today|on {day}].
        """,
        """
        Please [accept|tell me if you accept] this [offer|solution].
        [Would|Does] a delivery on {day} [suit|help] you?
        """,
    ),
    _family(
        "price_change",
        "Prices go up.",
        "the new prices",
        "Prices from {month}",
        """
        Our prices change in {month}. Tell {full} at {firm}.
        Explain {thing} to {full} [from {firm}|].
        """,
        """
        documents.search :: {firm} price list :: the price list :: The new price for {firm} is {amount} dollars from {month}.
        policy.find :: price changes :: the price rule :: Old customers keep the old price for {count} weeks.
        """,
        """
        Our [own|energy] costs [went up|grew] this year.
        The [service|quality] [stays|remains] the same.
        """,
        """
        Please [sign|return] the new [list|offer] by {day}.
        [Call|Tell] me if you have [questions|doubts].
        """,
    ),
    _family(
        "sick_cover",
        "Somebody is ill and work must be covered.",
        "the cover for {project}",
        "Cover on {day}",
        """
        I am ill. Ask {full} to take over {project} [on {day}|].
        Ask {full} for {thing}.
        """,
        """
        calendar.find :: {project} tasks :: my tasks :: The {project} call is on {day} at {time} with {firm}.
        documents.search :: {project} notes :: my notes :: The notes on {project} have {count} open points.
        """,
        """
        I am [at home|in bed] until {day2}.
        The [notes|files] are in the [shared|team] folder.
        """,
        """
        [Can|Could] you take [the call|it] [on {day}|for me]?
        Please [tell|let] {firm} [know|about it] [too|before {time}].
        """,
    ),
    _family(
        "contract_signing",
        "A contract waits for a signature.",
        "the contract with {firm}",
        "Contract {code}",
        """
        {full} still has to sign {thing}. [Ask|Remind] politely.
        Get the signature of {full} for {thing}.
        """,
        """
        documents.search :: {firm} contract :: the contract :: Contract {code} is worth {amount} dollars and ends in {month}.
        policy.find :: signatures :: the rule on signatures :: Every contract needs a signature within {count} days.
        """,
        """
        [All|The] changes you [wanted|asked for] are in.
        The [legal|finance] team has [checked|read] it.
        """,
        """
        Please [sign|return] it by {day}.
        [Can|Could] you send [a copy|it back] [today|on {day2}]?
        """,
    ),
    _family(
        "training_signup",
        "People should sign up for a training.",
        "the {project} training",
        "{project} training in {month}",
        """
        Invite {full} to {thing}.
        Ask {full} and the {team} team to [join|sign up for] {thing}.
        """,
        """
        calendar.find :: {project} training :: the training date :: The {project} training is on {day} at {time} in {room}.
        documents.search :: training costs :: the costs :: A seat costs {amount} dollars, and {count} seats are left.
        """,
        """
        The course is for [beginners|everyone in {team}].
        You [learn|see] how to [use|run] {project} [alone|step by step].
        """,
        """
        Please [sign up|answer] by {day2}.
        [Tell|Write to] me if you [want|need] a seat.
        """,
    ),
    _family(
        "lost_badge",
        "A badge was lost.",
        "the lost badge",
        "Badge {code}",
        """
        I lost my badge. [Report|Tell] it to {full}.
        Write to {full} about {thing}.
        """,
        """
        documents.search :: badge number :: my badge number :: The badge has the number {code}.
        policy.find :: lost badge :: the badge rule :: A new badge costs {count} dollars and takes {count} days.
        """,
        """
        I [last|still] had it on {day} near {room}.
        I [looked|searched] [everywhere|in every bag].
        """,
        """
        Please [block|stop] the old [one|badge] [today|at once].
        [When|On which day] can I [get|collect] a new one?
        """,
    ),
    _family(
        "draft_feedback",
        "A draft gets feedback.",
        "your draft for {project}",
        "Your {project} draft",
        """
        Give {full} my feedback on the {project} draft.
        I read the draft by {full} [on {project}|]. Send [feedback|comments].
        """,
        """
        documents.search :: {project} draft comments :: my comments :: The start is strong, but part {count} is too long.
        calendar.find :: {project} print :: the print date :: The {project} print is on {day} at {time}.
        """,
        """
        The [main|first] idea is [clear|good].
        The [numbers|pictures] need [a check|a source].
        """,
        """
        Please [send|write] a new version by {day2}.
        [Can|Could] you [cut|shorten] [that part|it] before {day}?
        """,
    ),
    _family(
        "server_work",
        "A server will be switched off for work.",
        "the work on the {project} server",
        "{project} server on {day}",
        """
        Warn {full} about {thing}.
        The {project} server will be off. Tell {full} in {team}.
        """,
        """
        calendar.find :: {project} server :: the work plan :: The {project} server is off on {day} from {time} to {time2}.
        policy.find :: server work :: the server rule :: All users must save their files {count} minutes before.
        """,
        """
        [Mail|The shared drive] will not work [during that time|then].
        We [replace|update] an old [part|disk].
        """,
        """
        Please [save|close] your files [in time|before {time}].
        [Tell|Warn] your team [today|by {day2}].
        """,
    ),
    _family(
        "stock_order",
        "Stock is low and an order has to be placed.",
        "the order of paper",
        "Order {code}",
        """
        We run out of paper. Order more from {full} at {firm}.
        Ask {full} from {firm} about {thing}.
        """,
        """
        documents.search :: {firm} offer :: the last offer :: Offer {code} is {count} boxes for {amount} dollars.
        policy.find :: orders :: the order rule :: An order over {amount} dollars needs two names.
        """,
        """
        Our [store|shelf] is [nearly|almost] empty.
        We [use|need] {count} boxes [a week|until {day2}].
        """,
        """
        Please [deliver|bring] it on {day}.
        [Can|Could] you [hold|keep] the [same|old] price?
        """,
    ),
    _family(
        "budget_question",
        "A budget does not add up.",
        "the {month} budget",
        "Budget for {month}",
        """
        The {month} budget does not add up. Ask {full}.
        Write to {full} in {team} about {thing}.
        """,
        """
        documents.search :: {month} budget :: the budget sheet :: The {month} budget is {amount} dollars over the limit.
        policy.find :: budget limits :: the budget rule :: A team that is over its limit must write a plan in {count} days.
        """,
        """
        [Line|Row] {count} [looks|seems] wrong.
        The {project} costs may be [counted|booked] twice.
        """,
        """
        Please [check|explain] it by {day}.
        [Can|Could] we [talk|look at it] on {day} at {time}?
        """,
    ),
    _family(
        "noise",
        "There is too much noise in an office.",
        "the noise near {room}",
        "Noise near {room}",
        """
        Ask {full} to [do something|help] about {thing}.
        It is too loud here. Write to {full} about {thing}.
        """,
        """
        policy.find :: quiet hours :: the rule on quiet hours :: Quiet hours are from {time} to {time2}.
        calendar.find :: calls near {room} :: the call list :: The {team} calls are on {day} at {time}.
        """,
        """
        The [calls|talks] are [loud|long] every {day}.
        {count} people cannot [work|think] [there|then].
        """,
        """
        [Can|Could] your team use {room} [instead|for calls]?
        Please [keep|hold] the calls [short|after {time2}].
        """,
    ),
    _family(
        "reference_letter",
        "Somebody needs a reference letter.",
        "the letter for {full}",
        "Your letter",
        """
        {full} asked for a reference letter. [Answer|Reply].
        Reply to {full} about the reference letter.
        """,
        """
        documents.search :: {first} record :: the work record :: {first} worked on {project} for {count} months.
        policy.find :: reference letters :: the rule on letters :: A letter needs {count} days and a signature from {team}.
        """,
        """
        I am [glad|happy] to [write|sign] it.
        Your work on {project} was [good|solid].
        """,
        """
        Please [send|give] me [the address|your new role] by {day}.
        [Tell|Write to] me what it should [say|cover].
        """,
    ),
    _family(
        "photo_day",
        "There is a photo day for the website.",
        "the photo day",
        "Photos on {day}",
        """
        Tell {full} about {thing}.
        Remind {full} and the {team} team of {thing}.
        """,
        """
        calendar.find :: photo day :: the photo plan :: The photos are on {day} at {time} in {room}.
        documents.search :: photo rules :: the photo sheet :: Each photo takes {count} minutes, and plain shirts look best.
        """,
        """
        The [pictures|photos] are for the [website|{month} page].
        The {team} team [goes|is] first.
        """,
        """
        Please [come|be there] {count} minutes early.
        [Tell|Write to] me if you [cannot|do not want to] come.
        """,
    ),
    _family(
        "access_request",
        "Somebody needs access to a folder.",
        "access to the {project} folder",
        "Access to {project}",
        """
        I need {thing}. Ask {full}.
        Ask {full} in {team} for {thing}.
        """,
        """
        policy.find :: folder access :: the access rule :: Access needs form {code} and a yes from {team}.
        documents.search :: {project} members :: the member list :: The {project} folder has {count} members.
        """,
        """
        I [join|start on] {project} [on {day}|this week].
        Read access [only|alone] is [fine|enough].
        """,
        """
        Please [open|share] it by {day}.
        [Can|Could] you [add|put] me [today|on the list]?
        """,
    ),
)

HELD = (
    _family(
        "late_invoice",
        "A customer's invoice is overdue and the usual contact has gone quiet.",
        "the overdue invoice from {firm}",
        "Invoice {code}",
        """
        {full} at {firm} owes us money since {day}. Write about {thing}.
        Remind {full} of {thing}.
        """,
        """
        documents.search :: {firm} invoice :: the invoice :: Invoice {code} is {amount} dollars and was due on {day}.
        policy.find :: overdue invoices :: the rule on overdue invoices :: An overdue invoice stops new orders after {count} weeks.
        """,
        "We have not seen a payment yet.",
        "Please pay by {day2}.",
    ),
    _family(
        "double_booking",
        "One hour was promised to two visitors.",
        "the double booking on {day}",
        "Our visit on {day}",
        """
        I have two visitors at the same hour. Move the visit of {full} from {firm}.
        Write to {full} about {thing} and offer another hour.
        """,
        """
        calendar.find :: visit {first} :: my calendar :: The next free slot is {day} at {time}.
        policy.find :: visitors :: the visitor rule :: A guest gets a free lunch when we move a visit.
        """,
        "I promised the same hour to another guest.",
        "Does {day} at {time} work for you?",
    ),
    _family(
        "missed_deadline",
        "A promised delivery missed its deadline.",
        "the missed deadline for {project}",
        "{project} deadline",
        """
        We missed the deadline for {project}. Tell {full} at {firm}.
        Write to {full} about {thing}.
        """,
        """
        documents.search :: {project} status :: the status :: {project} is {count} days behind, because two testers left.
        calendar.find :: {project} delivery :: the delivery date :: The {project} delivery is now on {day} at {time}.
        """,
        "The tests took longer than planned.",
        "Please tell me if the new date is a problem.",
    ),
    _family(
        "speaker_thanks",
        "A guest speaker gave a lecture and deserves thanks.",
        "your lecture on {project}",
        "Your lecture",
        """
        {full} from {firm} gave a lecture here. Send our thanks.
        Thank {full} for the lecture on {project}.
        """,
        """
        documents.search :: lecture survey :: the survey :: The lecture had {count} questions and the best marks of {month}.
        calendar.find :: speaker dinner :: the dinner date :: The speaker dinner is on {day} at {time2}.
        """,
        "The whole team still talks about it.",
        "Please join our dinner on {day}.",
    ),
    _family(
        "parking_permit",
        "Somebody's parking permit runs out.",
        "your parking permit",
        "Parking permit {code}",
        """
        The parking permit of {full} runs out soon. Write about it.
        Tell {full} in {team} what to do about the parking permit.
        """,
        """
        documents.search :: {last} permit :: the permit :: Permit {code} ends in {month}.
        policy.find :: parking :: the parking rule :: A new permit costs {amount} dollars and takes {count} days.
        """,
        "Without a permit, the gate stays closed.",
        "Please send the form by {day}.",
    ),
    _family(
        "damaged_parcel",
        "A parcel reached a customer with damage.",
        "the damaged parcel",
        "Parcel {code}",
        """
        A parcel for {full} at {firm} arrived with damage. Sort it out.
        Write to {full} about {thing}.
        """,
        """
        documents.search :: parcel {firm} :: the parcel record :: Parcel {code} fell from a truck on {day}.
        policy.find :: damage :: the damage rule :: We replace damaged goods within {count} days.
        """,
        "The box was open when it arrived.",
        "Please send us a photo by {day2}.",
    ),
    _family(
        "vacation_overlap",
        "Two people of one team asked for the same weeks of vacation.",
        "the vacation in {month}",
        "Vacation in {month}",
        """
        {full} and a colleague want the same vacation weeks. Write to {full}.
        Ask {full} in {team} to move {thing}.
        """,
        """
        calendar.find :: {team} vacation :: the vacation calendar :: The {team} vacation in {month} is full, and {count} days are free after it.
        policy.find :: vacation :: the vacation rule :: At least {count} people must stay in each team.
        """,
        "Two people asked for the same weeks.",
        "Please tell me which weeks you prefer.",
    ),
    _family(
        "newsletter_error",
        "The newsletter went out with a mistake.",
        "the error in the newsletter",
        "Newsletter for {month}",
        """
        The newsletter got a fact about {full} wrong. Write to {full}.
        Write to {full} at {firm} about {thing}.
        """,
        """
        documents.search :: {month} newsletter :: the newsletter :: The {month} newsletter named the wrong price of {amount} dollars on page {count}.
        policy.find :: corrections :: the rule on corrections :: A correction goes out within {count} days.
        """,
        "The wrong text is still online.",
        "Please check the new text by {day}.",
    ),
    _family(
        "internship_offer",
        "A student gets an internship.",
        "your internship",
        "Your internship in {month}",
        """
        We want {full} as an intern in {team}. Send the offer.
        Offer {full} the internship in {team}.
        """,
        """
        documents.search :: intern offer {last} :: the offer sheet :: The internship starts in {month}, lasts {count} weeks and pays {amount} dollars.
        calendar.find :: intern interviews :: the interview plan :: The last interview is on {day} at {time} in {room}.
        """,
        "The whole {team} team liked you.",
        "Please say yes or no by {day2}.",
    ),
    _family(
        "fire_drill",
        "A fire drill was badly followed.",
        "the fire drill",
        "Fire drill on {day}",
        """
        The {team} team ignored the last fire drill. Write to {full}, who leads it.
        Tell {full} in {team} about {thing}.
        """,
        """
        calendar.find :: fire drill :: the drill date :: The next fire drill is on {day} at {time}.
        policy.find :: fire safety :: the safety rule :: Everyone must leave the building within {count} minutes.
        """,
        "Last time half of the desks stayed full.",
        "Please talk to your team before {day}.",
    ),
    _family(
        "expense_claim",
        "An expense claim lacks receipts.",
        "your expense claim",
        "Expense claim {code}",
        """
        The expense claim of {full} is not complete. Ask for what is missing.
        Write to {full} in {team} about the expense claim.
        """,
        """
        documents.search :: {last} expenses :: the claim :: Claim {code} over {amount} dollars lacks {count} receipts.
        policy.find :: expenses :: the expense rule :: Claims without receipts are not paid after {month}.
        """,
        "Without the receipts we cannot pay.",
        "Please send them by {day}.",
    ),
    _family(
        "catering_order",
        "The catering for an event must be changed.",
        "the catering for {project}",
        "Catering on {day}",
        """
        More guests come to {project}. Change the catering with {full} at {firm}.
        Write to {full} about {thing}.
        """,
        """
        documents.search :: {project} guests :: the guest list :: The {project} event has {count} new guests and one without meat.
        calendar.find :: {project} event :: the event date :: The {project} event is on {day} at {time} in {room}.
        """,
        "We need more plates than we thought.",
        "Please send a new price by {day2}.",
    ),
    _family(
        "desk_move",
        "A colleague's desk moves to another floor.",
        "your desk move",
        "Your new desk",
        """
        {full} has to move to another floor. [Explain|Tell] it.
        Tell {full} in {team} about the desk move.
        """,
        """
        calendar.find :: desk move {first} :: the moving date :: The desk move is on {day} at {time}.
        documents.search :: floor plan :: the floor plan :: The new desk is {code} beside {room}.
        policy.find :: moving :: the moving rule :: Every person packs up to {count} boxes.
        """,
        "The {team} team moves to the next floor.",
        "Please pack your things before {day}.",
    ),
    _family(
        "rehearsal_shift",
        "A rehearsal for a big show was shifted.",
        "the {project} rehearsal",
        "{project} rehearsal",
        """
        The {project} rehearsal was shifted. Tell {full} at {firm}.
        Let {full} know the new hour of {thing}.
        """,
        """
        calendar.find :: {project} rehearsal :: the calendar :: The {project} rehearsal is now on {day} at {time} in {room}.
        """,
        "The stage is not free before that.",
        "Please tell me if you can come.",
    ),
    _family(
        "plant_care",
        "Nobody watered the office plants.",
        "the dry office ferns",
        "Our ferns",
        """
        Nobody waters the ferns in the lobby. Ask {full} to take care of it.
        Write to {full} in {team} about {thing}.
        """,
        """
        documents.search :: lobby ferns :: the care sheet :: The lobby has {count} ferns, and each costs {amount} dollars.
        policy.find :: lobby :: the lobby rule :: The {team} team looks after the lobby in {month}.
        """,
        "Half of the leaves are brown.",
        "Please water them every {day}.",
    ),
    _family(
        "mentor_match",
        "Somebody asked for a mentor.",
        "your wish for a mentor",
        "Your mentor",
        """
        {full} wants a mentor. Send our answer.
        Answer {full} in {team} about the mentor.
        """,
        """
        documents.search :: mentor list :: the mentor list :: The free mentor is in {team} and has {count} years of practice.
        calendar.find :: mentor meeting :: the meeting plan :: The first mentor meeting is on {day} at {time} in {room}.
        """,
        "A mentor takes one hour a month.",
        "Please confirm the meeting by {day2}.",
    ),
)


def _recombined(name: str, description: str, thing: str, tasks: str, *facts: tuple[str, int]) -> Family:
    """A task whose facts are those of known families, each given by family and position."""
    known = {family.name: family for family in FAMILIES}
    looked_up = tuple(known[family].facts[i] for family, i in facts)
    return Family(name, description, thing, "", tuple(forms(tasks)), looked_up, (), ())


# The embedded model looks up what it knows from pre-training: in most tool loops of `HELD` it searches for what is not
# there until its steps are used up. These tasks are new, and each fact is found with the tool that it tries next.
RECOMBINED = (
    _recombined(
        "paid_bill",
        "A customer has paid a bill early.",
        "your early payment",
        """
        {full} at {firm} has paid our bill early. Send [our|my] thanks.
        Thank {full} at {firm} for {thing}.
        """,
        ("unpaid_bill", 0),
        ("price_change", 1),
    ),
    _recombined(
        "training_report",
        "A report on a training is needed.",
        "the report on the {project} training",
        """
        I need {thing} from {full}. Ask for it.
        Ask {full} in {team} to send {thing}.
        """,
        ("training_signup", 0),
        ("request_report", 1),
    ),
    _recombined(
        "review_invitation",
        "Somebody is invited to a review.",
        "the {month} review",
        """
        Invite {full} to {thing}.
        Ask {full} in {team} to join {thing}.
        """,
        ("request_report", 0),
        ("missed_call", 1),
    ),
    _recombined(
        "late_trip",
        "A business trip will be late.",
        "the delay of the trip to {firm}",
        """
        The trip to {firm} will be late. Tell {full}.
        Write to {full} about {thing}.
        """,
        ("travel_booking", 0),
        ("project_delay", 2),
    ),
    _recombined(
        "contract_price",
        "The price in a contract changes.",
        "the price in the contract with {firm}",
        """
        The contract with {firm} has a new price. Tell {full}.
        Explain {thing} to {full}.
        """,
        ("contract_signing", 0),
        ("price_change", 1),
    ),
    _recombined(
        "broken_badge",
        "A badge does not work.",
        "the broken badge",
        """
        My badge is broken. Ask {full} for a [repair|new one].
        Write to {full} in {team} about {thing}.
        """,
        ("lost_badge", 0),
        ("broken_laptop", 1),
    ),
    _recombined(
        "order_delay",
        "An order will be late.",
        "the delay of order {code}",
        """
        Order {code} will be late. Tell {full} at {firm}.
        Write to {full} at {firm} about {thing}.
        """,
        ("customer_complaint", 0),
        ("project_delay", 2),
    ),
    _recombined(
        "paper_costs",
        "Paper costs too much.",
        "the costs of paper",
        """
        Our paper costs too much. Ask {full} at {firm} for a new price.
        Write to {full} at {firm} about {thing}.
        """,
        ("stock_order", 0),
        ("budget_question", 1),
    ),
    _recombined(
        "travel_budget",
        "Trips cost too much.",
        "the travel budget for {month}",
        """
        The travel costs in {month} are too high. Ask {full}.
        Write to {full} in {team} about {thing}.
        """,
        ("budget_question", 0),
        ("travel_booking", 1),
    ),
    _recombined(
        "cancelled_trip",
        "A business trip is off.",
        "the trip to {firm}",
        """
        The trip to {firm} is off. Tell {full}.
        Write to {full} about the end of {thing}.
        """,
        ("travel_booking", 0),
        ("customer_complaint", 1),
    ),
    _recombined(
        "project_offer",
        "A customer wants an offer.",
        "our offer for {project}",
        """
        {full} from {firm} wants an offer for {project}. Answer.
        Send {full} at {firm} {thing}.
        """,
        ("price_change", 0),
        ("stock_order", 1),
    ),
    _recombined(
        "lost_laptop",
        "A laptop was lost.",
        "the lost laptop",
        """
        I lost my laptop. Report it to {full}.
        Write to {full} about {thing}.
        """,
        ("broken_laptop", 0),
        ("lost_badge", 1),
    ),
    _recombined(
        "bill_complaint",
        "A customer complains about a bill.",
        "your complaint about the bill",
        """
        {full} at {firm} complained about our bill. Answer.
        Answer the complaint of {full} at {firm} about the bill.
        """,
        ("unpaid_bill", 0),
        ("customer_complaint", 1),
    ),
    _recombined(
        "first_call",
        "A new colleague gets a first call.",
        "the first call with {full}",
        """
        {full} is our new colleague. Offer a first call.
        Write to {full} in {team} about {thing}.
        """,
        ("missed_call", 0),
        ("welcome_colleague", 1),
    ),
    _recombined(
        "late_order_bill",
        "A customer asks about the bill for a late order.",
        "the bill for order {code}",
        """
        {full} from {firm} asks about the bill for order {code}. Answer.
        Explain {thing} to {full} from {firm}.
        """,
        ("customer_complaint", 0),
        ("unpaid_bill", 1),
    ),
    _recombined(
        "status_question",
        "A customer asks how a project goes.",
        "the status of {project}",
        """
        {full} at {firm} asks about {project}. Answer.
        Tell {full} at {firm} about {thing}.
        """,
        ("project_delay", 0),
        ("draft_feedback", 1),
        ("contract_signing", 1),
    ),
)
