//! The words of commands to a home: for every action of a device the templates that are trained and those
//! that only measure. Data alone. Used by `home`.

/// What stands in the slot `{n}` of a template, and as `value` in the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amount {
    /// Nothing.
    None,
    /// A number; the first, the last, and the step between.
    Number(u32, u32, u32),
    /// One of these words.
    Word(&'static [&'static str]),
}

/// What a device can do.
#[derive(Debug)]
pub(crate) struct Action {
    pub(crate) device: &'static str,
    pub(crate) verb: &'static str,
    /// What stands in the slot `{room}`.
    pub(crate) places: &'static [&'static str],
    pub(crate) amount: Amount,
    pub(crate) known: [&'static str; 6],
    pub(crate) unseen: [&'static str; 3],
}

pub(crate) const ROOMS: [&str; 10] = [
    "kitchen",
    "bedroom",
    "bathroom",
    "living room",
    "office",
    "hallway",
    "nursery",
    "basement",
    "attic",
    "garage",
];
const ENTRANCES: [&str; 8] =
    ["front", "back", "garage", "cellar", "garden", "balcony", "side", "patio"];
const COLOURS: [&str; 6] = ["red", "blue", "green", "yellow", "purple", "white"];
const MUSIC: [&str; 6] = ["jazz", "rock", "pop", "blues", "soul", "folk"];
const PERCENT: Amount = Amount::Number(10, 90, 5);

const fn room(
    device: &'static str,
    verb: &'static str,
    amount: Amount,
    known: [&'static str; 6],
    unseen: [&'static str; 3],
) -> Action {
    Action { device, verb, places: &ROOMS, amount, known, unseen }
}

const fn entrance(
    verb: &'static str,
    known: [&'static str; 6],
    unseen: [&'static str; 3],
) -> Action {
    let (device, places) = ("lock", &ENTRANCES);
    Action { device, verb, places, amount: Amount::None, known, unseen }
}

pub(crate) const ACTIONS: [Action; 21] = [
    room(
        "light",
        "on",
        Amount::None,
        [
            "Turn on the light in the {room}",
            "Switch the {room} lights on",
            "It is too dark in the {room}, light please",
            "Lights on in the {room}",
            "Put the lamp in the {room} on",
            "I need some light in the {room}",
        ],
        [
            "Please switch on the lamp in the {room}",
            "Could you turn the {room} lights on",
            "The {room} is dark, put the light on",
        ],
    ),
    room(
        "light",
        "off",
        Amount::None,
        [
            "Turn off the light in the {room}",
            "Switch the {room} lights off",
            "Nobody needs the lamp in the {room} now",
            "Lights out in the {room}",
            "Kill the {room} lights",
            "Make the {room} dark",
        ],
        [
            "Please switch off the lamp in the {room}",
            "Could you turn the {room} lights off",
            "Put the lights out in the {room}",
        ],
    ),
    room(
        "light",
        "dim",
        PERCENT,
        [
            "Dim the {room} light to {n} percent",
            "Set the brightness in the {room} to {n} percent",
            "Bring the lamp in the {room} to {n} percent",
            "{room} lights at {n} percent please",
            "Make the {room} lamp {n} percent bright",
            "I want {n} percent light in the {room}",
        ],
        [
            "Please dim the lights of the {room} to {n} percent",
            "Set the {room} lamp to {n} percent brightness",
            "Could you bring the {room} light to {n} percent",
        ],
    ),
    room(
        "light",
        "color",
        Amount::Word(&COLOURS),
        [
            "Make the {room} light {n}",
            "Change the lamp in the {room} to {n}",
            "I want {n} light in the {room}",
            "Turn the {room} lights {n}",
            "Set the color of the {room} lamp to {n}",
            "Give the {room} a {n} glow",
        ],
        [
            "Please change the color in the {room} to {n}",
            "Could you make the lamp in the {room} {n}",
            "Set the {room} lights to the color {n}",
        ],
    ),
    room(
        "blinds",
        "open",
        Amount::None,
        [
            "Open the blinds in the {room}",
            "Raise the {room} blinds",
            "Pull up the shutters in the {room}",
            "Let the sun into the {room}",
            "Shutters up in the {room}",
            "I want to look out of the {room} window",
        ],
        [
            "Please raise the shutters in the {room}",
            "Could you open the {room} shutters",
            "Pull the {room} blinds up",
        ],
    ),
    room(
        "blinds",
        "close",
        Amount::None,
        [
            "Close the blinds in the {room}",
            "Lower the {room} blinds",
            "Pull down the shutters in the {room}",
            "Keep the sun out of the {room}",
            "Shutters down in the {room}",
            "Nobody should look into the {room}",
        ],
        [
            "Please lower the shutters in the {room}",
            "Could you close the {room} shutters",
            "Pull the {room} blinds down",
        ],
    ),
    room(
        "blinds",
        "set",
        PERCENT,
        [
            "Set the {room} blinds to {n} percent",
            "Move the shutters in the {room} to {n} percent",
            "{room} blinds at {n} percent",
            "Leave the {room} shutters {n} percent open",
            "I want the blinds of the {room} at {n} percent",
            "Stop the {room} shutters at {n} percent",
        ],
        [
            "Please move the {room} blinds to {n} percent",
            "Could you set the shutters of the {room} to {n} percent",
            "Leave the blinds in the {room} at {n} percent",
        ],
    ),
    room(
        "heating",
        "set",
        Amount::Number(15, 26, 1),
        [
            "Set the heating in the {room} to {n} degrees",
            "Make it {n} degrees in the {room}",
            "Heat the {room} to {n}",
            "Thermostat of the {room} to {n}",
            "I would like {n} degrees in the {room}",
            "Put the {room} radiator on {n} degrees",
        ],
        [
            "Please heat the {room} to {n} degrees",
            "Could you set the {room} thermostat to {n} degrees",
            "Put the heating of the {room} on {n}",
        ],
    ),
    room(
        "heating",
        "off",
        Amount::None,
        [
            "Turn off the heating in the {room}",
            "Switch the {room} radiator off",
            "The {room} is warm enough, stop heating",
            "No more heat in the {room}",
            "Shut down the thermostat in the {room}",
            "It is far too hot in the {room}, radiator off",
        ],
        [
            "Please switch off the heating in the {room}",
            "Could you turn the {room} radiator off",
            "It is warm in the {room}, no more heating",
        ],
    ),
    room(
        "speaker",
        "play",
        Amount::Word(&MUSIC),
        [
            "Play some {n} in the {room}",
            "Put on {n} in the {room}",
            "I want to hear {n} in the {room}",
            "{n} music in the {room} please",
            "Start {n} on the {room} speaker",
            "Let the {room} stereo play {n}",
        ],
        [
            "Please play {n} music in the {room}",
            "Could you start some {n} in the {room}",
            "Put {n} on the {room} stereo",
        ],
    ),
    room(
        "speaker",
        "stop",
        Amount::None,
        [
            "Stop the music in the {room}",
            "Silence in the {room}",
            "Turn off the speaker in the {room}",
            "No more songs in the {room}",
            "End the music on the {room} stereo",
            "Mute the {room} speaker",
        ],
        [
            "Please stop the stereo in the {room}",
            "Could you end the music in the {room}",
            "No more music in the {room}",
        ],
    ),
    room(
        "speaker",
        "volume",
        PERCENT,
        [
            "Set the volume in the {room} to {n}",
            "{room} speaker volume {n}",
            "Make the music in the {room} {n} percent loud",
            "Change the {room} stereo to volume {n}",
            "I want volume {n} in the {room}",
            "Put the loudness of the {room} speaker at {n}",
        ],
        [
            "Please change the volume of the {room} speaker to {n}",
            "Could you set the {room} stereo to volume {n}",
            "Put the volume in the {room} at {n}",
        ],
    ),
    room(
        "fan",
        "on",
        Amount::None,
        [
            "Turn on the fan in the {room}",
            "Switch the {room} fan on",
            "Some fresh air in the {room} please",
            "Start the ventilator in the {room}",
            "Let the {room} fan run",
            "The air in the {room} is stuffy",
        ],
        [
            "Please start the fan in the {room}",
            "Could you turn the {room} ventilator on",
            "It is stuffy in the {room}, switch the fan on",
        ],
    ),
    room(
        "fan",
        "off",
        Amount::None,
        [
            "Turn off the fan in the {room}",
            "Switch the {room} fan off",
            "Stop the ventilator in the {room}",
            "The {room} fan is too noisy",
            "There is a draft in the {room}, fan off",
            "Enough air in the {room}",
        ],
        [
            "Please stop the fan in the {room}",
            "Could you turn the {room} ventilator off",
            "The ventilator in the {room} is noisy, switch it off",
        ],
    ),
    entrance(
        "lock",
        [
            "Lock the {room} door",
            "Make sure the {room} door is locked",
            "Bolt the {room} door",
            "Secure the {room} entrance",
            "Nobody may come in by the {room} door",
            "Shut the lock of the {room} door",
        ],
        [
            "Please bolt the {room} entrance",
            "Could you lock the {room} entrance",
            "Make sure the {room} door is secure",
        ],
    ),
    entrance(
        "unlock",
        [
            "Unlock the {room} door",
            "Open the lock of the {room} door",
            "Let somebody in by the {room} door",
            "I forgot my key, unlock the {room} entrance",
            "Unbolt the {room} door",
            "The {room} door should not be locked",
        ],
        [
            "Please unlock the {room} entrance",
            "Could you unbolt the {room} entrance",
            "Open the {room} lock, I forgot my key",
        ],
    ),
    room(
        "vacuum",
        "start",
        Amount::None,
        [
            "Vacuum the {room}",
            "Clean the {room} with the robot",
            "Send the vacuum to the {room}",
            "The {room} is dusty",
            "Start the robot in the {room}",
            "Hoover the {room}",
        ],
        [
            "Please clean the {room}, it is dusty",
            "Could you send the robot to the {room}",
            "Start the vacuum in the {room}",
        ],
    ),
    room(
        "vacuum",
        "stop",
        Amount::None,
        [
            "Stop the vacuum in the {room}",
            "No more cleaning in the {room}",
            "Halt the robot in the {room}",
            "The {room} is clean enough",
            "Call the robot back from the {room}",
            "Interrupt the hoover in the {room}",
        ],
        [
            "Please halt the vacuum in the {room}",
            "Could you stop the robot in the {room}",
            "No more hoover in the {room}, it is clean enough",
        ],
    ),
    room(
        "tv",
        "on",
        Amount::None,
        [
            "Turn on the tv in the {room}",
            "Switch the {room} television on",
            "I want to watch tv in the {room}",
            "Start the television in the {room}",
            "Tv on in the {room}",
            "Wake up the {room} tv",
        ],
        [
            "Please switch on the tv in the {room}",
            "Could you start the {room} tv",
            "I want to watch television in the {room}",
        ],
    ),
    room(
        "tv",
        "off",
        Amount::None,
        [
            "Turn off the tv in the {room}",
            "Switch the {room} television off",
            "Nobody watches tv in the {room}",
            "Shut down the television in the {room}",
            "Tv off in the {room}",
            "Enough tv in the {room}",
        ],
        [
            "Please switch off the tv in the {room}",
            "Could you turn the {room} television off",
            "Enough television in the {room}, shut it down",
        ],
    ),
    room(
        "tv",
        "channel",
        Amount::Number(1, 60, 1),
        [
            "Put channel {n} on the {room} tv",
            "Change the {room} television to channel {n}",
            "Show channel {n} in the {room}",
            "I want to see channel {n} in the {room}",
            "{room} tv on channel {n}",
            "Go to channel {n} on the tv in the {room}",
        ],
        [
            "Please show channel {n} on the {room} television",
            "Could you change the tv in the {room} to channel {n}",
            "Go to channel {n} in the {room}",
        ],
    ),
];
