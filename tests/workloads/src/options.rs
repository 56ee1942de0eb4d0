//! The command line: `--name value` pairs, known names only.

use std::time::Duration;

use crate::client::Server;

/// What to print when the command line is not understood.
pub const USAGE: &str = "\
usage: xsload demo   [--seconds S] [--device PATH | --socket PATH]
       xsload script [--seed N] [--seconds S] [--requests N] [--clients N] [--pause-us U]
                     [--every-ms M] [--reply-limit-s S] [--event-limit-s S] [--base PATH]
                     [--forgive-doomed 0|1] [--windows 0|1]
                     [--device PATH | --socket PATH]
                     [--fill NODES] [--fill-per-directory NODES]
       xsload bench  [--operation read|write|transaction] [--requests N] [--base PATH]
                     [--device PATH | --socket PATH]
       xsload net    SERVER:PORT GATEWAY SECONDS
       xsload stream --party K --parties N --requests N [--seed N]
                     [--device PATH | --socket PATH]";

/// The guest kernel's XenStore device.
const DEVICE: &str = "/dev/xen/xenbus";

/// Every setting of every verb.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of the script; each further client takes the next one.
    pub seed: u64,
    /// End after this long; zero means no limit.
    pub duration: Duration,
    /// End after this many requests per client; zero means no limit.
    pub requests: u64,
    /// Connections working at once.
    pub clients: u64,
    /// Pause between requests.
    pub pause: Duration,
    /// Time between two progress lines.
    pub every: Duration,
    /// A request not answered within this is lost.
    pub reply_limit: Duration,
    /// A watch event not seen within this is lost.
    pub event_limit: Duration,
    /// Whether faults are injected, so that a transaction hit by one may read wrongly and fail.
    pub forgives_doomed: bool,
    /// Whether each progress line's latencies are those since the line before.
    pub windows: bool,
    /// Where the script's nodes lie.
    pub base: String,
    /// What `bench` measures.
    pub operation: String,
    /// Which party of a stream this is.
    pub party: usize,
    /// Parties of a stream.
    pub parties: usize,
    /// Nodes that the script makes first and leaves alone.
    pub fill: u64,
    /// How many of them share a directory.
    pub fill_per_directory: u64,
    /// The server.
    pub server: Server,
}

impl Options {
    /// Reads the words behind the verb.
    pub fn parse(words: &[String]) -> Result<Options, String> {
        let mut out = Options {
            seed: 1,
            duration: Duration::ZERO,
            requests: 0,
            clients: 1,
            pause: Duration::ZERO,
            every: Duration::from_secs(1),
            reply_limit: Duration::from_secs(30),
            event_limit: Duration::from_secs(10),
            forgives_doomed: false,
            windows: false,
            base: "data/xsload".into(),
            operation: "write".into(),
            party: 0,
            parties: 1,
            fill: 0,
            fill_per_directory: 100,
            server: Server::Device(DEVICE.into()),
        };
        let mut rest = words.iter();
        while let Some(name) = rest.next() {
            let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
            out.set(name, value)?;
        }
        Ok(out)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name {
            "--seed" => self.seed = number()?,
            "--seconds" => self.duration = Duration::from_secs(number()?),
            "--requests" => self.requests = number()?,
            "--clients" => self.clients = number()?.clamp(1, 16),
            "--pause-us" => self.pause = Duration::from_micros(number()?),
            "--every-ms" => self.every = Duration::from_millis(number()?.max(1)),
            "--reply-limit-s" => self.reply_limit = Duration::from_secs(number()?),
            "--event-limit-s" => self.event_limit = Duration::from_secs(number()?),
            "--forgive-doomed" => self.forgives_doomed = number()? > 0,
            "--windows" => self.windows = number()? > 0,
            "--base" => self.base = value.trim_end_matches('/').to_owned(),
            "--party" => self.party = number()? as usize,
            "--parties" => self.parties = number()?.clamp(1, 16) as usize,
            "--fill" => self.fill = number()?,
            "--fill-per-directory" => self.fill_per_directory = number()?.max(1),
            "--operation" => self.operation = value.to_owned(),
            "--device" => self.server = Server::Device(value.to_owned()),
            "--socket" => self.server = Server::Socket(value.to_owned()),
            _ => return Err(format!("{name} is not an option")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_and_wrong_ones_named() {
        let options = parse("--seed 7 --seconds 3 --socket /s --clients 900").unwrap();
        assert_eq!((options.seed, options.duration.as_secs(), options.clients), (7, 3, 16));
        assert!(matches!(options.server, Server::Socket(path) if path == "/s"));
        assert!(parse("--seed x").unwrap_err().contains("--seed x"));
        assert!(parse("--nonsense 1").is_err());
        assert!(parse("--seed").is_err());
    }
}
