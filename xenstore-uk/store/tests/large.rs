//! A large store after a restart: made piece by piece, and right from the first answer on.
#![allow(missing_docs)]

mod common;

use common::{Host, TOOL};
use store::Config;
use wire::Operation as O;

#[test]
fn a_large_store_serves_while_it_is_made() {
    for per_directory in [100, 3_000] {
        let mut host = Host::with_slots(Config::new(77, &[0, TOOL], 4), 256 + 128 * 8_000);
        host.introduce(16);
        for node in 0..3_000 {
            let path = format!("/fill/{}/{}", node / per_directory, node % per_directory);
            assert_eq!(host.write(TOOL, &path, &format!("{node}")), "OK|");
        }
        for round in 0..6 {
            let report = host.restart();
            assert_eq!(report.load.lost_records, 0);
            for step in 0..200 {
                let path = format!("/work/{}", (round * 7 + step) % 9);
                assert_eq!(host.write(TOOL, &path, "1"), "OK|");
                assert_eq!(host.call(TOOL, O::Read, &["/work/none"]), "ENOENT|");
                host.now_ns += 600_000;
                assert_eq!(host.server.idle_step(host.now_ns), None);
            }
            let path = format!("/fill/{}/{}", 2_999 / per_directory, 2_999 % per_directory);
            assert_eq!(host.read(TOOL, &path), "2999");
        }
    }
}
