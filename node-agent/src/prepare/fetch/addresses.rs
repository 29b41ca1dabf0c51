//! Which addresses a source may have. Tenants choose sources, and agents can reach more of the
//! network than tenants can.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Denied addresses, and the exceptions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AddressRules {
    /// Networks that are always allowed.
    pub allow: Vec<IpNet>,
    /// Private networks are denied too.
    pub deny_private: bool,
}

/// A denied address. The address itself is not shown: the author of a name may not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what}, where no source may be; the chart's value agent.sources.allow makes exceptions",
    what = self.what()
)]
pub(super) struct DeniedAddress {
    kind: Kind,
    /// It belongs to a name, which may mean another address elsewhere.
    pub is_of_name: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Public,
    Private,
    Loopback,
    LinkLocal,
    Metadata,
    Unspecified,
    Multicast,
    Reserved,
}

/// Metadata services of clouds, besides link-local addresses: AWS by IPv6, Alibaba, Azure's host,
/// Oracle's older cloud.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

impl DeniedAddress {
    /// The same, for an address that belongs to a name.
    pub(super) const fn of_name(self) -> Self {
        Self {
            is_of_name: true,
            ..self
        }
    }

    const fn what(&self) -> &'static str {
        match (self.kind, self.is_of_name) {
            (Kind::Loopback, false) => "it is a loopback address",
            (Kind::Loopback, true) => "the name leads to a loopback address",
            (Kind::LinkLocal, false) => "it is a link-local address",
            (Kind::LinkLocal, true) => "the name leads to a link-local address",
            (Kind::Metadata, false) => "it is the address of a cloud's metadata",
            (Kind::Metadata, true) => "the name leads to the address of a cloud's metadata",
            (Kind::Private, false) => "it is a private address",
            (Kind::Private, true) => "the name leads to a private address",
            (_, false) => "it is an address of no server",
            (_, true) => "the name leads to an address of no server",
        }
    }
}

impl AddressRules {
    /// Whether a source may be at `address`, which stands in it as it is.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), DeniedAddress> {
        let address = address.to_canonical();
        if self.allow.iter().any(|net| net.contains(&address)) {
            return Ok(());
        }
        let is_fine = |kind| match kind {
            Kind::Public => true,
            Kind::Private => !self.deny_private,
            _ => false,
        };
        // An address that embeds another is judged by both.
        let inner = carried(address).map(IpAddr::V4);
        let kinds = [Some(address), inner].into_iter().flatten().map(kind);
        match kinds.into_iter().find(|kind| !is_fine(*kind)) {
            None => Ok(()),
            Some(kind) => Err(DeniedAddress {
                kind,
                is_of_name: false,
            }),
        }
    }
}

/// The IPv4 address to which a gateway would send what is meant for `address`: NAT64
/// (RFC 6052, and a site's own by RFC 8215), 6to4 (RFC 3056), or the form that IPv6 began
/// with.
fn carried(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let from = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, .., high, low] => {
            Some(from(high, low))
        }
        [0x2002, high, low, ..] => Some(from(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(from(high, low)),
        _ => None,
    }
}

fn kind(address: IpAddr) -> Kind {
    if METADATA.contains(&address) {
        return Kind::Metadata;
    }
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        _ if address.is_loopback() => Kind::Loopback,
        _ if address.is_link_local() => Kind::LinkLocal,
        _ if address.is_multicast() => Kind::Multicast,
        _ if address.is_private() => Kind::Private,
        (0, ..) => Kind::Unspecified,
        // Shared by the customers of a carrier (RFC 6598), and by some clusters' pods.
        (100, 64..=127, _) => Kind::Private,
        // Benchmarking networks (RFC 2544).
        (198, 18..=19, _) => Kind::Private,
        (192, 0, 0) | (240..=255, ..) => Kind::Reserved,
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    let first = address.segments()[0];
    match first {
        _ if address.is_loopback() => Kind::Loopback,
        _ if address.is_unspecified() => Kind::Unspecified,
        _ if address.is_multicast() => Kind::Multicast,
        0xfe80..=0xfebf => Kind::LinkLocal,
        // Unique local, and deprecated site-local addresses.
        0xfc00..=0xfdff | 0xfec0..=0xfeff => Kind::Private,
        _ => Kind::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(rules: &AddressRules, address: &str) -> Option<Kind> {
        let checked = rules.check(address.parse().unwrap());
        checked.err().map(|denied| denied.kind)
    }

    #[test]
    fn what_is_no_server_of_a_source_is_denied() {
        let rules = AddressRules::default();
        let cases = [
            ("127.0.0.1", Kind::Loopback),
            ("127.255.0.9", Kind::Loopback),
            ("::1", Kind::Loopback),
            ("169.254.169.254", Kind::LinkLocal),
            ("fe80::1", Kind::LinkLocal),
            ("febf::1", Kind::LinkLocal),
            ("fd00:ec2::254", Kind::Metadata),
            ("100.100.100.200", Kind::Metadata),
            ("168.63.129.16", Kind::Metadata),
            ("192.0.0.192", Kind::Metadata),
            ("0.0.0.0", Kind::Unspecified),
            ("0.1.2.3", Kind::Unspecified),
            ("::", Kind::Unspecified),
            ("224.0.0.1", Kind::Multicast),
            ("ff02::1", Kind::Multicast),
            ("255.255.255.255", Kind::Reserved),
            ("240.0.0.1", Kind::Reserved),
            // The same addresses in other notations.
            ("::ffff:127.0.0.1", Kind::Loopback),
            ("::ffff:169.254.169.254", Kind::LinkLocal),
            ("::127.0.0.1", Kind::Loopback),
            ("64:ff9b::7f00:1", Kind::Loopback),
            ("64:ff9b::a9fe:a9fe", Kind::LinkLocal),
            ("64:ff9b:1:2:3:4:a9fe:a9fe", Kind::LinkLocal),
            ("2002:7f00:1::", Kind::Loopback),
        ];
        for (address, kind) in cases {
            assert_eq!(verdict(&rules, address), Some(kind), "{address}");
        }
        for address in ["93.184.216.34", "2606:4700::1111", "10.77.0.1", "fd12::1"] {
            assert_eq!(verdict(&rules, address), None, "{address}");
        }
    }

    #[test]
    fn private_networks_are_denied_where_it_is_asked_for() {
        let rules = AddressRules {
            deny_private: true,
            ..AddressRules::default()
        };
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "fd12::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
        ] {
            assert_eq!(verdict(&rules, address), Some(Kind::Private), "{address}");
        }
        assert_eq!(verdict(&rules, "172.32.0.1"), None);
    }

    #[test]
    fn exceptions_are_for_their_networks_alone() {
        let rules = AddressRules {
            allow: vec![
                "127.0.0.2/32".parse().unwrap(),
                "10.1.0.0/16".parse().unwrap(),
            ],
            deny_private: true,
        };
        assert_eq!(verdict(&rules, "127.0.0.2"), None);
        assert_eq!(verdict(&rules, "::ffff:127.0.0.2"), None);
        assert_eq!(verdict(&rules, "127.0.0.1"), Some(Kind::Loopback));
        assert_eq!(verdict(&rules, "10.1.2.3"), None);
        assert_eq!(verdict(&rules, "10.2.2.3"), Some(Kind::Private));
    }
}
