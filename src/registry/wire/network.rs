//! Which addresses are internal.
//!
//! Pure. Guaranteed: an address that is not known to be public does not count as public, also if IPv6 carries an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The internet.
    Public,
    /// This machine, a private network, the cluster, or nowhere.
    Internal,
    /// The machine's own link, where clouds serve credentials to whoever asks.
    LinkLocal,
}

/// The networks of one's own.
#[derive(Debug)]
pub(crate) struct Networks {
    /// Those of the cluster, whatever their addresses.
    pub(crate) cluster: Vec<IpNet>,
}

/// "This network", private, shared, loopback, protocol assignments, documentation, benchmarks, multicast, reserved, broadcast.
const INTERNAL: [Ipv4Net; 14] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];
/// Link-local, and the metadata services that clouds keep at other addresses.
const LINK_LOCAL: [Ipv4Net; 3] = [
    v4(169, 254, 0, 0, 16),
    v4(100, 100, 100, 200, 32),
    v4(168, 63, 129, 16, 32),
];
/// All that is assigned to the internet in IPv6.
const GLOBAL_6: Ipv6Net = v6([0x2000, 0, 0, 0], 3);
/// Protocol assignments (Teredo among them) and documentation, inside it.
const INTERNAL_6: [Ipv6Net; 3] = [
    v6([0x2001, 0, 0, 0], 23),
    v6([0x2001, 0xdb8, 0, 0], 32),
    v6([0x3fff, 0, 0, 0], 20),
];
const LINK_LOCAL_6: [Ipv6Net; 2] = [
    v6([0xfe80, 0, 0, 0], 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d]: [u16; 4], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), length)
}

impl Networks {
    pub(crate) fn reach(&self, address: IpAddr) -> Reach {
        let reach = match address {
            IpAddr::V4(address) => reach_4(address),
            IpAddr::V6(address) => match embedded(address) {
                Some(inner) => self.reach(inner.into()),
                None => reach_6(address),
            },
        };
        if reach == Reach::Public && self.cluster.iter().any(|net| net.contains(&address)) {
            return Reach::Internal;
        }
        reach
    }
}

fn reach_4(address: Ipv4Addr) -> Reach {
    if LINK_LOCAL.iter().any(|net| net.contains(&address)) {
        Reach::LinkLocal
    } else if INTERNAL.iter().any(|net| net.contains(&address)) {
        Reach::Internal
    } else {
        Reach::Public
    }
}

fn reach_6(address: Ipv6Addr) -> Reach {
    if LINK_LOCAL_6.iter().any(|net| net.contains(&address)) {
        Reach::LinkLocal
    } else if !GLOBAL_6.contains(&address) || INTERNAL_6.iter().any(|net| net.contains(&address)) {
        Reach::Internal
    } else {
        Reach::Public
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped, translated, compatible (`::` and `::1` among them), NAT64, 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_known_to_be_public_is_internal_also_inside_ipv6() {
        let networks = Networks {
            cluster: vec!["8.8.4.0/24".parse().unwrap(), "2a00::/16".parse().unwrap()],
        };
        for (reach, addresses) in [
            (
                Reach::Public,
                "8.8.8.8 100.63.0.1 172.32.0.1 169.253.0.1 2600::1 2001:4860::8888 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1",
            ),
            (
                Reach::Internal,
                "127.0.0.1 0.0.0.0 10.0.0.1 172.16.0.1 172.30.0.1 192.168.1.1 100.64.0.1 100.127.255.255 224.0.0.1 \
                 255.255.255.255 240.0.0.1 192.0.2.1 198.18.0.1 :: ::1 fc00::1 fd00::1 fec0::1 ff02::1 100::1 2001::1 2001:db8::1 \
                 ::ffff:127.0.0.1 ::127.0.0.1 ::ffff:0:10.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8 2002:a00:1::1 \
                 8.8.4.4 ::ffff:8.8.4.4 64:ff9b::8.8.4.4 2a00::1",
            ),
            (
                Reach::LinkLocal,
                "169.254.169.254 fe80::1 febf::1 ::ffff:169.254.169.254 64:ff9b::169.254.169.254 2002:a9fe:a9fe::1 \
                 100.100.100.200 168.63.129.16 fd00:ec2::254",
            ),
        ] {
            for address in addresses.split_whitespace() {
                let found = networks.reach(address.parse().unwrap());
                assert_eq!(found, reach, "{address}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_address_reaches_as_far_in_every_spelling_and_a_range_of_ones_own_is_never_public(
            address: [u8; 4], sixth: [u16; 8], length in 0_u8..=128,
        ) {
            let [plain, own] = [vec![], vec![IpNet::new(Ipv6Addr::from(sixth).into(), length).unwrap(), IpNet::new(Ipv4Addr::from(address).into(), length.min(32)).unwrap()]]
                .map(|cluster| Networks { cluster });
            let address = Ipv4Addr::from(address);
            let high = u16::from_be_bytes([address.octets()[0], address.octets()[1]]);
            let low = u16::from_be_bytes([address.octets()[2], address.octets()[3]]);
            for spelling in [
                address.to_ipv6_mapped(), address.to_ipv6_compatible(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low), Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ] {
                prop_assert_eq!(plain.reach(spelling.into()), plain.reach(address.into()), "{}", spelling);
                prop_assert_ne!(own.reach(spelling.into()), Reach::Public);
            }
            prop_assert_ne!(own.reach(address.into()), Reach::Public);
            prop_assert_ne!(own.reach(Ipv6Addr::from(sixth).into()), Reach::Public);
        }
    }
}
