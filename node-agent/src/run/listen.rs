//! The agent's listeners: IPv4 and IPv6 on one socket, unless configured otherwise.

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;

/// Listens on `port` of `address`. `::` means every IPv6 and IPv4 address, or only IPv4 if
/// the kernel has no IPv6.
///
/// # Errors
/// The port is taken, or the address is not of this host.
pub(super) fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    let any = SocketAddr::new(address, port);
    let listener = match bound(any) {
        Err(error) if address.is_ipv6() && address.is_unspecified() && !is_taken(&error) => {
            tracing::info!(%error, port, "no IPv6 here; listening on IPv4 alone");
            bound((Ipv4Addr::UNSPECIFIED, port).into())
        }
        bound => bound,
    };
    listener.with_context(|| format!("cannot listen on port {port} of {address}"))
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Whatever the system's own default is.
        socket.set_only_v6(false)?;
    }
    // A restarted agent need not wait for old connections.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn by_default_clients_of_either_kind_are_heard() {
        let listener = listen(Ipv6Addr::UNSPECIFIED.into(), 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip().to_canonical(), Ipv4Addr::LOCALHOST);
        if listener.local_addr().unwrap().is_ipv4() {
            println!("this machine has no IPv6");
            return;
        }
        TcpStream::connect((Ipv6Addr::LOCALHOST, port))
            .await
            .unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip(), Ipv6Addr::LOCALHOST);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let first = listen(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = listen(Ipv4Addr::LOCALHOST.into(), port).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
