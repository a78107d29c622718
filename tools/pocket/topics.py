"""What people chat about in the pocket world: domains of everyday activities, each with its own plain advice.

The objects under ``held`` never occur in pre-training (`test_held_out.py` holds the corpus to that); they make
``data/pocket/chat.jsonl``. In an object list ``*`` marks a plural, ``=`` a name that takes no article, and an object
that begins with "the" keeps it.
"""

from dataclasses import dataclass

from tools.pocket.grammar import forms, names


@dataclass(frozen=True)
class Domain:
    """One area of daily life: verbs that take every object of the area, and advice that fits all of them."""

    name: str
    verbs: tuple[tuple[str, str], ...]  # ("bake", "baking")
    objects: tuple[str, ...]
    held: tuple[str, ...]
    tools: tuple[str, ...]
    tips: tuple[str, ...]
    reasons: tuple[str, ...]


def _domain(name: str, verbs: str, objects: str, held: str, tools: str, tips: str, reasons: str) -> Domain:
    pairs = tuple((verb, gerund) for verb, _, gerund in (v.partition("/") for v in names(verbs)))
    return Domain(
        name,
        pairs,
        tuple(names(objects)),
        tuple(names(held)),
        tuple(names(tools)),
        tuple(forms(tips)),
        tuple(forms(reasons)),
    )


DOMAINS = (
    _domain(
        "cooking",
        "cook/cooking, make/making, prepare/preparing, serve/serving",
        """lemon cake, tomato soup, *pancakes, fish pie, chicken stew, apple tart, *meatballs, green salad, mushroom
        omelet, *noodles, potato bake, pumpkin bread, bean chili, cheese toast, rice pudding, *dumplings, roast duck,
        onion dip, *waffles, chocolate cookie, beef burger, carrot cake, egg sandwich, spinach pasta, corn bread""",
        """cherry crumble, lentil curry, *pretzels, shrimp risotto, *muffins, leek quiche, walnut brownie, *tacos,
        peach jam, cabbage roll, ginger biscuit""",
        "a large pot, a sharp knife, fresh butter, a little salt, a wooden spoon, good oil, a hot pan",
        """
        [Heat|Warm] the [pan|oven|pot] before you [start|begin].
        [Taste it|Try a spoonful] [often|early] and add [a little salt|some pepper|fresh herbs].
        [Cut|Chop|Slice] everything into [small|even] pieces.
        Let it [rest|cool] for [five|ten|fifteen] minutes before you [serve it|cut it].
        Use [fresh|good] [ingredients|butter|herbs] from the [market|shop].
        Keep the heat [low|gentle], and stir [slowly|often].
        [Read|Check] the recipe [once|twice] before you [cook|start].
        Add the [salt|spice|sauce] [near the end|bit by bit].
        [Measure|Weigh] the [flour|butter|sugar] [with care|on a scale].
        Serve it [warm|hot] with [bread|a salad|a cold drink].
        """,
        """
        it fills the [house|kitchen] with a good smell
        a [warm|hot] meal brings [people|the family] together
        it is [cheap|easy] and tastes [great|better than the shop's]
        """,
    ),
    _domain(
        "garden",
        "grow/growing, plant/planting, care for/caring for",
        """*tulips, *tomatoes, rose bush, *herbs, apple tree, *beans, *carrots, small hedge, *sunflowers, *onions,
        fern, *potatoes, *peas, lemon tree, *pumpkins, *lilies, *strawberries, wild meadow, *daisies, mint plant""",
        """*radishes, *orchids, fig tree, *cucumbers, lavender border, *zucchini, cactus, *asters, plum tree,
        *peppers, bamboo screen""",
        "good soil, a small spade, a watering can, some compost, a pair of gloves, a sunny bed",
        """
        [Water|Soak] the [roots|soil] [early in the morning|in the evening].
        Choose a spot with [a lot of|enough] [sun|light].
        [Mix|Dig] some compost into the [soil|bed].
        [Pull|Remove] the weeds [every week|before they spread].
        [Protect|Cover] the young [leaves|shoots] from [frost|snails].
        Leave [enough|some] space between the [plants|roots].
        [Cut|Trim] the dead [leaves|branches] [in spring|in autumn].
        [Check|Feel] the soil with a finger before you [water|add more].
        [Feed|Dress] the soil [once a month|in early spring].
        """,
        """
        [fresh air|time outside] is good for the [mind|body]
        it is a joy to see things [grow|bloom]
        the [garden|balcony] looks [better|brighter] all summer
        """,
    ),
    _domain(
        "repair",
        "fix/fixing, repair/repairing, mend/mending",
        """dripping tap, squeaky door, flat tire, broken chair, torn curtain, noisy fridge, loose handle, cracked
        window, old radio, stuck drawer, bicycle chain, kitchen shelf, garden gate, blocked drain, dead lamp,
        leaky roof, wobbly table, slow computer, rusty lock, broken zipper""",
        """creaky staircase, dented mailbox, faulty blender, bent umbrella, jammed scanner, snapped racket, peeling
        wallpaper, rattling heater, chipped teapot, frayed cable, silent doorbell""",
        "a small screwdriver, some strong glue, a bit of tape, a hammer, a new screw, a clean cloth",
        """
        [Turn off|Switch off] the [water|power] before you [start|touch it].
        [Clean|Wipe] the part with a [dry|soft] cloth.
        [Take a photo|Make a drawing] before you take it apart.
        [Tighten|Replace] the [loose|old] [screw|bolt].
        Put a [drop|bit] of [oil|glue] on the [joint|edge].
        Let the glue dry for [an hour|a night].
        [Test|Check] it [twice|with care] before you [close it|use it].
        [Keep|Put] the small parts in a [bowl|box].
        [Order|Buy] the [right|same] spare part [first|online].
        """,
        """
        a [repair|quick fix] is cheaper than a new one
        it [saves|keeps] [good things|money] from the bin
        you learn how [things|machines] work
        """,
    ),
    _domain(
        "craft",
        "make/making, design/designing, finish/finishing",
        """wool scarf, paper lantern, wooden toy, clay bowl, summer dress, picture frame, bird house, leather belt,
        cotton bag, glass lamp, greeting card, bead necklace, rag doll, straw basket, felt hat, pine bench,
        toy boat, patchwork cushion, silver ring, dream catcher""",
        """quilt, candle holder, linen apron, mosaic tray, puppet, macrame hanger, origami crane, ceramic mug,
        embroidered napkin, kite, velvet purse""",
        "sharp scissors, a ruler, strong thread, some paint, a soft pencil, a flat brush",
        """
        [Draw|Sketch] the shape on paper [first|before you cut].
        [Measure|Mark] each side [twice|with a ruler].
        [Cut|Work] [slowly|along the line] with sharp scissors.
        [Choose|Pick] [two|three] colors that [match|go together].
        Let the [paint|glue] dry [overnight|for an hour].
        [Practice|Try] on a [scrap|spare] piece first.
        [Hide|Tuck in] the loose [ends|threads].
        [Sand|Smooth] the [rough|sharp] edges.
        [Pin|Clip] the parts together before you [join|sew] them.
        """,
        """
        it is [nice|good] to make things by hand
        a handmade gift means [more|a lot]
        it keeps the [hands|mind] busy in a calm way
        """,
    ),
    _domain(
        "music",
        "learn/learning, practice/practicing, play/playing",
        """the guitar, the piano, the violin, the drums, the flute, a love song, the trumpet, a slow waltz, the cello,
        a folk tune, the organ, the bass, a short march, the whistle, a school anthem, a jazz tune, the tuba""",
        """the harp, the banjo, the clarinet, a lullaby, the accordion, the oboe, a tango, the ukulele, the bagpipes,
        a sonata, the harmonica""",
        "a quiet room, a good teacher, a metronome, some sheet notes, a comfortable chair",
        """
        [Play|Practice] for [ten|fifteen|twenty] minutes [every day|each morning].
        Start [slowly|with a simple part] and [count|tap] the beat.
        [Listen to|Watch] a good player [first|every week].
        [Repeat|Loop] the [hard|tricky] bar until it feels easy.
        [Relax|Drop] your shoulders and [breathe|sit up].
        [Record|Tape] yourself and [listen|compare].
        Learn [one|a] new [chord|scale|bar] a week.
        [Tune|Clean] your instrument before you [start|play].
        [Sing|Hum] the tune before you [play|try] it.
        """,
        """
        [music|a good song] lifts the mood
        it trains the [ear|memory] and the [hands|fingers]
        playing with [friends|others] is fun
        """,
    ),
    _domain(
        "sport",
        "learn/learning, practice/practicing, try/trying, take up/taking up",
        """=tennis, =judo, =rowing, =yoga, =boxing, =chess, =football, =dancing, =cycling, =golf, =skating, =karate,
        =hockey, =running, =swimming, =darts, =table tennis, =climbing, =handball""",
        """=archery, =surfing, =fencing, =badminton, =volleyball, =bowling, =kayaking, =gymnastics, =squash,
        =wrestling, =orienteering""",
        "good shoes, a water bottle, a patient coach, a light jacket, a simple plan",
        """
        [Warm up|Stretch] for [five|ten] minutes [first|before you start].
        [Train|Go] [two|three] times a week.
        [Drink|Bring] enough water.
        [Rest|Sleep] well after each [session|game].
        [Join|Find] a [local|friendly] [club|group].
        [Start|Begin] with [short|easy] sessions.
        [Wear|Get] shoes that fit.
        [Write down|Track] your [progress|results] each week.
        [Stop|Pause] when something hurts.
        """,
        """
        it keeps the [heart|body] [strong|fit]
        you meet [new|nice] people
        it clears the head after [work|a long day]
        """,
    ),
    _domain(
        "travel",
        "visit/visiting, explore/exploring, travel to/traveling to",
        """the mountains, a small island, the old town, a wild beach, the desert, a quiet village, the northern coast,
        a famous castle, the lake, a national park, the capital, a rain forest, the southern valley, a warm port,
        the wine country, a ski resort, the big market, a sunny bay""",
        """the volcano, a vineyard, the glacier, a lighthouse, the canyon, a monastery, the waterfall, a fjord,
        the ruins, a safari camp, the aquarium""",
        "a light bag, a good map, a warm coat, a rail ticket, a spare battery, strong boots",
        """
        [Book|Reserve] the [room|train] [early|a month ahead].
        [Pack|Take] [light|only what you need].
        [Check|Look at] the [weather|timetable] the day before.
        [Leave|Go] early to avoid the [crowds|traffic].
        [Keep|Carry] a copy of your [ticket|passport].
        [Ask|Talk to] the locals about [good food|quiet places].
        [Bring|Pack] [snacks|water] for the [road|way].
        Take [the morning train|a side road] and [enjoy|watch] the view.
        [Plan|Leave] one free [day|afternoon] for [rest|surprises].
        """,
        """
        a change of [air|place] clears the mind
        the [views|people] are [lovely|worth the trip]
        you come home with [stories|new ideas]
        """,
    ),
    _domain(
        "pets",
        "train/training, look after/looking after, feed/feeding",
        """a shy kitten, an old dog, a young parrot, a gray rabbit, two goldfish, a stray cat, a noisy puppy, a pony,
        a lazy bulldog, three hens, a farm horse, a baby goat, a tiny mouse, a wild duck, a fat tabby, a lost sheep""",
        """a hamster, a tortoise, a ferret, a canary, a terrier, a gecko, a hedgehog, two alpacas, a donkey, a beagle,
        a peacock""",
        "a soft bed, a clean bowl, some treats, a quiet corner, a short leash, a good vet",
        """
        [Feed|Give food] at the same [time|hour] each day.
        [Keep|Fill] the bowl with [fresh|clean] water.
        [Reward|Praise] good behavior with a [treat|kind word].
        [Speak|Move] [softly|slowly] near the animal.
        [Visit|Call] the vet [once a year|when in doubt].
        [Play|Spend time] together for [ten|twenty] minutes a day.
        [Brush|Check] the [coat|ears] every week.
        [Keep|Make] the sleeping place [warm|dry].
        [Be|Stay] patient, and repeat each [lesson|step].
        """,
        """
        animals are good [company|friends]
        a pet brings [calm|life] to the [house|home]
        it teaches [patience|care]
        """,
    ),
    _domain(
        "money",
        "save for/saving for, buy/buying, pay for/paying for",
        """a new laptop, a used car, a winter coat, a garden shed, a wedding ring, a family holiday, a camera, a phone,
        a washing machine, a house, a leather sofa, a bicycle, a language course, a desk, a motorbike, a boat,
        a cinema screen, a good mattress""",
        """a tractor, a caravan, a telescope, a piano stool, a treadmill, a sewing kit, a dishwasher, a fur rug,
        a chandelier, a tuxedo, a snowboard""",
        "a clear budget, a savings account, a price list, a small notebook, a fixed limit",
        """
        [Set|Put] aside [a fixed sum|a little] each [week|month].
        [Compare|Check] the prices in [three|several] shops.
        [Wait|Look] for a [sale|fair offer].
        [Write down|Track] what you [spend|earn].
        [Ask|Look] for a [discount|warranty].
        [Read|Check] the [contract|reviews] first.
        [Avoid|Skip] [loans|debts] when you can.
        [Sell|Give away] what you no longer [use|need].
        [Sleep on it|Wait a day] before you [pay|sign].
        """,
        """
        a clear goal makes [saving|waiting] easier
        it lasts for [years|a long time] if you choose well
        it feels good to own [something solid|it outright]
        """,
    ),
    _domain(
        "party",
        "plan/planning, organize/organizing, host/hosting",
        """a birthday party, a family dinner, a street festival, a picnic, a school reunion, a game night, a wedding,
        a farewell lunch, a movie night, a garden party, a book club, a charity run, a talent show, a dance evening,
        a holiday feast, a tea party, a neighborhood breakfast""",
        """a barbecue, a costume ball, a karaoke contest, a housewarming, a scavenger race, a poker tournament,
        a masquerade, a bridal shower, a raffle, a flea stall, a campfire sleepover""",
        "a guest list, enough chairs, a simple menu, some music, a few helpers, a clear date",
        """
        [Send|Write] the invitations [two|three] weeks ahead.
        [Ask|Let] [a friend|two guests] to help with the [food|chairs].
        [Keep|Make] the menu [short|simple].
        [Choose|Fix] a date that suits [most guests|everyone].
        [Make|Write] a list of [guests|tasks].
        [Prepare|Set up] the [room|table] the day before.
        [Plan|Have] a [dry place|second room] in case of rain.
        [Pick|Play] [soft|happy] music.
        [Welcome|Greet] each guest at the door.
        """,
        """
        it brings [friends|neighbors] together
        people remember a [good|happy] evening for years
        everyone needs a reason to [laugh|meet]
        """,
    ),
    _domain(
        "writing",
        "write/writing, finish/finishing, edit/editing",
        """a short story, a love letter, a school essay, a travel diary, a speech, a blog post, a news report, a novel,
        a birthday card, a cover letter, a play, a book review, a family history, a comic, a song text, a thank-you
        note, a movie script""",
        """a haiku, a memoir, a fairy tale, a eulogy, a limerick, a recipe column, a resume, a sermon, a thesis,
        a crossword, a ghost legend""",
        "a quiet hour, a clean page, a good pen, a clear outline, an honest reader",
        """
        [Write|Draft] the first version [quickly|in one go].
        [Read|Say] it aloud to hear the rhythm.
        [Cut|Drop] every word that you do not need.
        [Start|Open] with [one clear|a strong] sentence.
        [Make|Write] a short outline [first|before you begin].
        [Ask|Find] a friend to read it.
        [Leave|Put] it for a day, then [read it again|edit it].
        [Keep|Use] [short|plain] sentences.
        [End|Close] with [an image|a thought] that stays.
        """,
        """
        it puts [thoughts|ideas] in order
        [words|letters] last longer than talk
        someone may [keep|enjoy] it for years
        """,
    ),
    _domain(
        "home",
        "clean/cleaning, tidy/tidying, organize/organizing, paint/painting",
        """the kitchen, the garage, a small bathroom, the cellar, a bedroom, the balcony, the hall, a closet,
        the living room, the office corner, a child's room, the workshop, a guest room, the laundry room, the stairs,
        the front porch""",
        """the attic, the pantry, a bookcase, the fireplace, a nursery, the basement bar, a greenhouse, the veranda,
        a wardrobe, the conservatory, a playroom""",
        "a bucket, a soft brush, some boxes, warm water, a bag for waste, an old shirt",
        """
        [Start|Begin] at the top and work [down|toward the door].
        [Sort|Put] things into [three|two] boxes.
        [Open|Clean] the windows [first|for fresh air].
        [Throw out|Give away] what is [broken|never used].
        [Work|Go] for [twenty|thirty] minutes, then take a break.
        [Wipe|Wash] the [shelves|floor] with warm water.
        [Label|Mark] each [box|shelf].
        [Do|Finish] one [corner|wall] at a time.
        [Cover|Move] the [chairs|furniture] before you [start|begin].
        """,
        """
        a tidy place [calms|clears] the mind
        you find [things|what you need] faster
        the whole [home|flat] feels [bigger|brighter]
        """,
    ),
    _domain(
        "study",
        "study/studying, learn about/learning about, read about/reading about",
        """=biology, =world history, =French, =the planets, =grammar, =chemistry, =Spanish, =old maps, =geometry,
        =electric cars, =ancient Rome, =physics, =the oceans, =Italian, =computer code, =painting, =the brain, =birds""",
        """=astronomy, =Portuguese, =dinosaurs, =genetics, =philosophy, =Vikings, =Korean, =statistics class,
        =anatomy, =Egyptian tombs, =robotics""",
        "a good book, a quiet desk, some flash cards, a timer, a study group, a notebook",
        """
        [Read|Study] for [twenty|thirty] minutes [a day|without your phone].
        [Write|Make] [short notes|a summary] after each chapter.
        [Explain|Teach] it to [a friend|someone else].
        [Test|Quiz] yourself [every week|with cards].
        [Take|Have] a [short break|walk] every hour.
        [Find|Use] a [good|simple] book for beginners.
        [Repeat|Review] the [hard|old] parts the next [day|week].
        [Draw|Make] a [map|chart] of the main ideas.
        [Watch|Look for] a [short|clear] lesson online.
        """,
        """
        [knowledge|learning] opens doors
        it makes the world [larger|more interesting]
        small facts [add up|connect] in surprising ways
        """,
    ),
    _domain(
        "people",
        "talk to/talking to, invite/inviting, thank/thanking, apologize to/apologizing to",
        """the old neighbor, a new roommate, the bus driver, a shy classmate, the landlord, a former boss,
        the night guard, a distant cousin, the school director, a rude waiter, a tired nurse, the mail carrier,
        the baker, a lonely aunt, the team captain, the new colleague, a lost friend, the piano teacher""",
        """the librarian, a stepbrother, the janitor, a godmother, the plumber, a pen pal, the mayor, a babysitter,
        the florist, a penniless uncle, the dentist""",
        "a kind word, a short note, a cup of coffee, some courage, an open ear, a small gift",
        """
        [Say|Use] their name and [smile|look up].
        [Keep|Make] it [short|simple] and [friendly|clear].
        [Ask|Start with] an open question.
        [Listen|Wait] until they have finished.
        [Choose|Find] a [quiet|calm] moment.
        [Be|Stay] [polite|calm], even if they are not.
        [Say|Tell them] what you [feel|mean] in one sentence.
        [Offer|Bring] [help|something small].
        [Write|Think] down your first line before you [go|call].
        """,
        """
        people [open up|smile] when someone asks
        a kind word [costs nothing|can change a day]
        it [builds|keeps] [trust|a good bond]
        """,
    ),
    _domain(
        "work",
        "prepare for/preparing for, lead/leading, get through/getting through",
        """a job interview, the staff meeting, a long shift, a sales talk, the yearly review, a first day at work,
        a training week, a night shift, the morning call, a big launch, a trial month, a team retreat,
        a phone conference, a busy season, the market stall, a press meeting""",
        """a salary negotiation, an audition, a probation period, a boardroom pitch, a strike, a merger briefing,
        a software demo, a hackathon, a jury duty, a fundraiser, a site inspection""",
        "a clear goal, a short list, a good night's sleep, a glass of water, three questions, a clean shirt",
        """
        [Write|Note] down the [three|two] points that matter.
        [Arrive|Be there] ten minutes early.
        [Practice|Say] your first sentence aloud.
        [Ask|Find] a colleague to [test|hear] you.
        [Take|Plan] a [short|real] break.
        [Speak|Breathe] slowly and [look up|pause].
        [Eat|Sleep] well the [night|day] before.
        [Bring|Keep] your notes on one page.
        [End|Close] with a clear next step.
        """,
        """
        good work [gets noticed|opens doors]
        it [teaches|shows] what you can do
        a calm start makes the [rest|whole day] easier
        """,
    ),
)

# (kind, ways to ask, plain first sentences of an answer). `them` is a first name.
QUESTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = tuple(
    (kind, tuple(forms(asks)), tuple(forms(answers)))
    for kind, asks, answers in (
        (
            "how",
            """
            How do I {do}?
            [Can|Could] you [tell me|explain] how to {do}?
            What is the best way to {do}?
            I want to {do}. Where do I [start|begin]?
            """,
            """
            To {do}, [start with|begin with|first get] {tool}.
            [The best way to|A good way to] {do} is to [go step by step|keep it simple|start small].
            For {thing}, [you need|get] {tool} and [some time|a little patience].
            """,
        ),
        (
            "tips",
            """
            [Do you have|Have you] any [tips|advice] for {doing}?
            Give me [a tip|some advice] for {doing}.
            I [plan to|would like to] {do} [this weekend|next week|soon]. Any [tips|advice|ideas]?
            """,
            """
            [My main tip|The first tip] for {thing} is [to start early|to take your time|to keep it simple].
            For {doing}, {tool} [helps a lot|makes a difference|is useful].
            {Doing} [gets easier|goes well] with {tool}.
            """,
        ),
        (
            "time",
            """
            How long does it take to {do}?
            How much time do I need to {do}?
            Can I {do} in [one day|an afternoon|a weekend]?
            """,
            """
            {Doing} takes about [an hour|two hours|three weeks|a month|a weekend|ten days].
            Plan [an hour|two hours|a weekend|a month|ten days] for {thing}.
            It takes [an hour|two hours|a weekend|a few weeks] to {do} well.
            """,
        ),
        (
            "should",
            """
            Should I {do} [today|this week|this weekend], or [is it better to wait|wait]?
            Is it a good idea to {do} [now|this month]?
            Is {doing} worth [it|the effort]?
            """,
            """
            Yes, {do} [now|this week|soon] if you have {tool}.
            {Doing} is worth [it|the effort|the time] if you [enjoy it|start small|have a free day].
            [Wait|Hold on] until you have {tool}, then {do}.
            """,
        ),
        (
            "failed",
            """
            I tried to {do}, [and|but] it went wrong. What now?
            I [failed|gave up] when I tried to {do}. [What did I do wrong|How do I try again]?
            My [first try|attempt] at {doing} was a [mess|failure]. [Help|Any advice]?
            """,
            """
            [Try|Start] {thing} again with {tool}.
            {Doing} [often goes wrong|is hard] the first time, so try again [tomorrow|next week].
            [Look at|Think about] what went wrong with {thing}, and change one [thing|step].
            """,
        ),
        (
            "need",
            """
            What do I need to {do}?
            What should I [buy|get ready] before I {do}?
            Which things [help with|matter for] {doing}?
            """,
            """
            To {do}, you need {tool} and {tool}.
            For {doing}, [get|buy] {tool} [first|before you start].
            You [only|mostly] need {tool} for {thing}.
            """,
        ),
        (
            "why",
            """
            Why do people [like|enjoy|love] {doing}?
            Why would anyone {do}?
            What is so [great|special|good] about {doing}?
            """,
            """
            People [like|enjoy] {doing} because {reason}.
            Many people {do} because {reason}.
            {Doing} is [popular|special] because {reason}.
            """,
        ),
        (
            "person",
            """
            My {relation} {them} wants to {do}. What should I [say|tell them]?
            How do I help my {relation} {them} to {do}?
            {them}, my {relation}, asked me how to {do}. What do I [say|answer]?
            """,
            """
            Tell {them} to [get|find] {tool} first.
            [Help|Show] {them} with {thing}, one [step|part] at a time.
            {them} can {do} with {tool} and [some help|a bit of time].
            """,
        ),
        (
            "proud",
            """
            I [finally|just] managed to {do}! What [next|now]?
            {Doing} went [well|great] today. How do I [keep going|get better]?
            I am proud, because I learned how to {do}. What comes next?
            """,
            """
            [Well done|Good work|Nice work] with {thing}.
            {Doing} [was|is] a good step, so [keep going|try a harder one next].
            Now that you can {do}, [teach|show] a friend.
            """,
        ),
        (
            "nervous",
            """
            I am [nervous|worried|afraid] about {doing} for my {relation}. [Help|Any advice|What should I do]?
            I have to {do} [tomorrow|on Friday|tonight], and I am [nervous|worried]. What [helps|can I do]?
            Everyone expects me to {do}, and I feel [lost|stressed]. What should I do?
            """,
            """
            It is normal to feel [nervous|worried] about {thing}.
            Take {thing} [one step|one part] at a time.
            [Prepare|Get] {tool} [today|tonight], and {thing} will [feel easier|go well].
            """,
        ),
        (
            "forgot",
            """
            I promised {them} to {do}, and I forgot. What do I say?
            I forgot to {do} for my {relation} {them}. How do I [fix this|make up for it]?
            {them} is [angry|upset], because I did not {do}. What [now|should I do]?
            """,
            """
            [Tell|Call] {them} today, and offer to {do} [this week|on Sunday|tomorrow].
            Tell {them} [the truth|what happened], and then {do} [at once|this week].
            [Set|Choose] a new day to {do}, and [tell|call] {them}.
            """,
        ),
        (
            "opinion",
            """
            What do you think [about|of] {doing}?
            Do you [like|enjoy] {doing}?
            I [think|believe] that {doing} is [easy|hard|boring|great]. [Right|Do you agree]?
            """,
            """
            I think that {doing} is [a good idea|worth a try|useful], because {reason}.
            {Doing} is [good|fine] for [most people|beginners], because {reason}.
            {Doing} can be [easy|hard], but {reason}.
            """,
        ),
        (
            "plan",
            """
            [Help me plan|Make me a plan for] a day of {doing}.
            I have [an hour|a free day|one weekend] to {do}. How do I use it?
            Can you [plan|organize] my [Saturday|Sunday] around {doing}?
            """,
            """
            [Start|Begin] in the morning with {tool}, and {do} [before noon|after breakfast].
            [First|In the morning], get {tool}, then {do} [until noon|in the afternoon].
            Use [the morning|the first hour] for {thing}, and [rest|check your work] after that.
            """,
        ),
        (
            "new",
            """
            I am new to {doing}. [What should I know|Where do I start]?
            I have never tried to {do}. Is it [hard|difficult]?
            [Is|Are there tricks that make] {doing} easy [for a beginner|for someone like me]?
            """,
            """
            {Doing} is [easy|not hard] to [begin|try] with {tool}.
            [A beginner|Someone new] can {do} with {tool} and [some help|a bit of time].
            [Nobody|No one] is good at {doing} on the first day.
            """,
        ),
        (
            "cost",
            """
            How much does it cost to {do}?
            [Can|How can] I {do} without [much money|spending a lot]?
            Is {doing} [expensive|cheap]?
            """,
            """
            {Doing} costs [little|not much] if you already have {tool}.
            You can {do} for [ten|twenty|fifty] dollars, if you [borrow|share] {tool}.
            [Most|Half] of the money for {thing} goes into {tool}.
            """,
        ),
        (
            "dislike",
            """
            I [hate|do not like] {doing}. [Do I have to do it|How do I get through it]?
            {Doing} is [boring|so tiring]. How do I [stay with it|keep going]?
            I have to {do} again. How do I make it [fun|bearable]?
            """,
            """
            [Make|Keep] {thing} [short|simple], and [take breaks|ask for help].
            [You do not have to|Nobody has to] {do} every [day|week].
            [Try|Plan] {thing} with a friend, [because|since] {reason}.
            """,
        ),
        (
            "late",
            """
            Is it too late to {do} [this year|at my age|now]?
            I wanted to {do} [for years|last month], but I never did. [Should I still try|What now]?
            I [waited|took] too long to {do}. What now?
            """,
            """
            It is not too late to {do}.
            You can {do} [this week|now|at any age], [because|since] {reason}.
            [Start|Begin] {thing} [today|this week], with {tool}.
            """,
        ),
        (
            "mishap",
            """
            [Something went wrong|There was a small accident] with {thing}. [What now|What should I do]?
            I [made a mistake|messed up] with {thing}. [How do I fix it|Help]!
            My {relation} {them} [laughed at me|got angry] because of {thing}. What do I do?
            """,
            """
            [Look at|Check] {thing} [calmly|again], and fix [one part|the worst part] first.
            [Take|Use] {tool}, and {do} [again|once more].
            A mistake with {thing} is [normal|easy to fix].
            """,
        ),
        (
            "together",
            """
            {them} and I want to {do} together. Any [ideas|advice]?
            [Who|Whom] should I ask to {do} with me?
            Is it better to {do} alone or with [{them}|my {relation}]?
            """,
            """
            [Share|Divide] the work on {thing}, and [start|begin] with {tool}.
            [Two people|Friends] can {do} [faster|better] with {tool}.
            {Doing} is [better|more fun] with company, because {reason}.
            """,
        ),
    )
)
