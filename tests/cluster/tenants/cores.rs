//! A core for the controller alone, so that what is measured beside an attack is what the controller does, and not how it shares its
//! cores with the registries, the API server and the test.

use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Which cores whom may run on.
pub struct Cores {
    controller: CpuSet,
    others: CpuSet,
}

impl Cores {
    /// Where `TENANTS_APART` asks for it: from now on this process, and what it starts, leaves one core alone.
    pub fn apart() -> Option<&'static Self> {
        static CORES: OnceLock<Option<Cores>> = OnceLock::new();
        let split = || std::env::var_os("TENANTS_APART").map(|_| Self::split());
        CORES.get_or_init(split).as_ref()
    }

    fn split() -> Self {
        let all = sched_getaffinity(this_thread()).unwrap();
        let mut free = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap());
        let (mut controller, mut others) = (CpuSet::new(), CpuSet::new());
        controller.set(free.next().unwrap()).unwrap();
        free.for_each(|core| others.set(core).unwrap());
        for thread in std::fs::read_dir("/proc/self/task").unwrap() {
            let name = thread.unwrap().file_name();
            let thread = Pid::from_raw(name.to_str().unwrap().parse().unwrap());
            sched_setaffinity(thread, &others).expect("two cores");
        }
        Self { controller, others }
    }

    /// What `start` starts has the controller's core.
    pub fn for_controller<T>(&self, start: impl FnOnce() -> T) -> T {
        sched_setaffinity(this_thread(), &self.controller).unwrap();
        let started = start();
        sched_setaffinity(this_thread(), &self.others).unwrap();
        started
    }
}

/// Starts something in a runtime of its own that is less urgent than all else, where the controller has a core to itself: an attacker's
/// registry would be another machine. Beside many other tests it would hardly come to its turn.
pub async fn elsewhere<T: Send + 'static>(start: impl Future<Output = T> + Send + 'static) -> T {
    if Cores::apart().is_none() {
        return start.await;
    }
    let (started, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(|| {
        rustix::process::nice(19).unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let _ = started.send(start.await);
            std::future::pending::<()>().await;
        });
    });
    result.await.unwrap()
}

fn this_thread() -> Pid {
    Pid::from_raw(0)
}
