//! Channel ids, united where they meet.

use std::collections::HashSet;

/// One index of one axis of a weight, or of an axis that an operator makes.
pub type Channel = u32;

/// Why a class of channels must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The operator or value where the class meets the obstacle.
    pub place: String,
    /// What the obstacle is.
    pub why: String,
}

/// Channels and the classes that they form (union-find), with the classes that must stay.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    parent: Vec<Channel>,
    frozen: Vec<Option<u32>>,
    /// By the channel that stands for a class: whether all of it are copies that an operator makes.
    elastic: Vec<bool>,
    reasons: Vec<Frozen>,
}

impl Channels {
    /// `count` new channels, each a class of its own.
    pub fn fresh(&mut self, count: usize) -> std::ops::Range<Channel> {
        let start = self.parent.len() as Channel;
        let end = start + count as Channel;
        self.parent.extend(start..end);
        self.frozen.resize(end as usize, None);
        self.elastic.resize(end as usize, false);
        start..end
    }

    /// `count` new channels that hold no data of their own, as those of an axis that is only repeated.
    pub fn fresh_elastic(&mut self, count: usize) -> std::ops::Range<Channel> {
        let range = self.fresh(count);
        self.elastic[range.start as usize..].fill(true);
        range
    }

    /// Whether the class of `channel` holds no data.
    pub fn is_elastic(&self, channel: Channel) -> bool {
        self.elastic[self.find(channel) as usize]
    }

    /// Number of channels.
    pub fn len(&self) -> usize {
        self.parent.len()
    }

    /// Whether there is no channel.
    pub fn is_empty(&self) -> bool {
        self.parent.is_empty()
    }

    /// The channel that stands for the class of `channel`.
    pub fn find(&self, mut channel: Channel) -> Channel {
        while self.parent[channel as usize] != channel {
            channel = self.parent[channel as usize];
        }
        channel
    }

    fn find_and_shorten(&mut self, mut channel: Channel) -> Channel {
        while self.parent[channel as usize] != channel {
            let grandparent = self.parent[self.parent[channel as usize] as usize];
            self.parent[channel as usize] = grandparent;
            channel = grandparent;
        }
        channel
    }

    /// Makes the classes of two channels one. The smaller channel stands for it, so that classes are
    /// ordered as the channels were made.
    pub fn unite(&mut self, a: Channel, b: Channel) {
        let (a, b) = (self.find_and_shorten(a), self.find_and_shorten(b));
        let (root, other) = (a.min(b), a.max(b));
        if root != other {
            self.parent[other as usize] = root;
            self.frozen[root as usize] = self.frozen[root as usize].or(self.frozen[other as usize]);
            self.elastic[root as usize] &= self.elastic[other as usize];
        }
    }

    /// Remembers a reason to freeze channels.
    pub fn reason(&mut self, place: String, why: impl Into<String>) -> u32 {
        self.reasons.push(Frozen { place, why: why.into() });
        self.reasons.len() as u32 - 1
    }

    /// All remembered reasons, each once, in the order of the graph.
    pub fn reasons(&self) -> Vec<&Frozen> {
        let mut seen = HashSet::new();
        self.reasons.iter().filter(|reason| seen.insert((&reason.place, &reason.why))).collect()
    }

    /// Makes the class of `channel` stay, for a remembered reason; the first reason is kept.
    pub fn freeze(&mut self, channel: Channel, reason: u32) {
        let root = self.find_and_shorten(channel) as usize;
        self.frozen[root].get_or_insert(reason);
    }

    /// Why the class of `channel` must stay, if it must.
    pub fn frozen(&self, channel: Channel) -> Option<&Frozen> {
        self.frozen[self.find(channel) as usize].map(|r| &self.reasons[r as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_frozen_when_any_of_its_channels_is() {
        let mut channels = Channels::default();
        let ids = channels.fresh(4);
        assert_eq!(ids, 0..4);
        let reason = channels.reason("Softmax".into(), "reduces over it");
        channels.freeze(3, reason);
        channels.unite(1, 2);
        assert!(channels.frozen(1).is_none());
        channels.unite(2, 3);
        assert_eq!(channels.find(3), 1);
        assert!(channels.frozen(1).is_some() && channels.frozen(0).is_none());
    }
}
