//! Passing an open file to another process over a socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends `bytes`, at least one, with `file` travelling on the first of them.
///
/// # Errors
/// Of the socket.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let numbers: Vec<RawFd> = file.iter().map(|file| file.as_raw_fd()).collect();
    let mut control = Vec::new();
    if !numbers.is_empty() {
        control.push(ControlMessage::ScmRights(&numbers));
    }
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)?;
    match bytes.get(sent..) {
        Some([]) => Ok(()),
        Some(rest) => send(socket, rest, None),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Receives some bytes into `buffer`, and a file if one travels with them. No bytes mean that the other side has closed.
///
/// # Errors
/// Of the socket.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut file = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            #[expect(unsafe_code, reason = "taking ownership of a descriptor received over a socket")]
            let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
            file = Some(owned);
        }
    }
    Ok((message.bytes, file))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_file_arrives_with_the_first_byte() {
        let (here, there) = UnixStream::pair().expect("socket pair");
        let mut sent = tempfile::tempfile().expect("temporary file");
        sent.write_all(b"content").expect("write");
        sent.rewind().expect("seekable");
        send(&here, b"line\n", Some(sent.as_fd())).expect("send");
        drop(here);
        let mut buffer = [0; 64];
        let (len, file) = receive(&there, &mut buffer).expect("receive");
        assert_eq!(&buffer[..len], b"line\n");
        let mut text = String::new();
        File::from(file.expect("a file")).read_to_string(&mut text).expect("text");
        assert_eq!(text, "content");
        assert!(matches!(receive(&there, &mut buffer), Ok((0, None))));
    }
}
