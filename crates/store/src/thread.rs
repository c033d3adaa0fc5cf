//! The owner thread of the connection: opens and migrates the file, then runs one transaction after
//! another until the last handle is gone, then tidies up. Knows no table. Used by `daemon`, and by
//! `mod.rs`, whose typed methods say what to run.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use rusqlite_migration::MigrationDefinitionError;
use tokio::sync::{mpsc, oneshot};

use super::{Result, StoreError, schema};

/// Callers wait for their answer, so more than this many at once means as many busy tasks.
const QUEUE: usize = 256;

/// Somebody may look at the file with another program.
const BUSY: Duration = Duration::from_secs(5);

type Command = Box<dyn FnOnce(&mut Connection) + Send>;

/// The handle: small, cloneable, the only way to the database.
#[derive(Clone, Debug)]
pub struct Store {
    commands: mpsc::Sender<Command>,
}

/// The thread, for the one who stops it.
#[derive(Debug)]
pub struct StoreThread {
    thread: JoinHandle<()>,
    /// Closed when the thread has ended, for whatever reason.
    ended: mpsc::Receiver<Infallible>,
}

impl StoreThread {
    /// Resolves when the thread has ended.
    pub async fn died(&mut self) {
        self.ended.recv().await;
    }

    /// Waits, blocking, until the thread has done what was asked of it and has tidied up. It ends
    /// when the last [`Store`] is dropped.
    pub fn join(self) -> Result<()> {
        self.thread.join().map_err(|_| StoreError::Stopped)
    }
}

/// Opens or creates the database; returns when it is ready.
pub async fn spawn(path: PathBuf) -> Result<(Store, StoreThread)> {
    let (commands, inbox) = mpsc::channel(QUEUE);
    let (ready, opened) = oneshot::channel();
    // Nothing is ever sent: the receiver learns from the closed channel that the thread has ended,
    // even after a panic.
    let (alive, ended) = mpsc::channel(1);
    let thread = thread::Builder::new()
        .name("store".into())
        .spawn(move || {
            let _alive = alive;
            match open(&path) {
                Ok(connection) => {
                    if ready.send(Ok(())).is_ok() {
                        run(connection, inbox);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })
        .map_err(|error| failed("start the store thread", error))?;
    opened.await.map_err(|_| StoreError::Stopped)??;
    Ok((Store { commands }, StoreThread { thread, ended }))
}

fn run(mut connection: Connection, mut inbox: mpsc::Receiver<Command>) {
    while let Some(command) = inbox.blocking_recv() {
        command(&mut connection);
    }
    if let Err(error) = tidy_up(&connection) {
        // All is committed; the next start reads the write-ahead log.
        tracing::warn!(%error, "The database could not be tidied up.");
    }
}

fn tidy_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA optimize")?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// A connection to an up-to-date database.
pub(super) fn open(path: &Path) -> Result<Connection> {
    const ACTION: &str = "open the database";
    let mut connection = Connection::open(path).map_err(|error| failed(ACTION, error))?;
    set_up(&connection).map_err(|error| failed(ACTION, error))?;
    match schema::migrations().to_latest(&mut connection) {
        Ok(()) => {}
        Err(rusqlite_migration::Error::MigrationDefinition(
            MigrationDefinitionError::DatabaseTooFarAhead,
        )) => return Err(StoreError::TooNew { path: path.into() }),
        Err(error) => return Err(failed("bring the database up to date", error)),
    }
    Ok(connection)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // In the write-ahead mode anything less loses commits at a power cut, and a client has been
    // told that its exchange is stored.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn failed(
    action: &'static str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Database { action, source: error.into() }
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A row that the caller named is not there.
    NotFound {
        /// See [`StoreError::NotFound`].
        what: &'static str,
        /// See [`StoreError::NotFound`].
        id: i64,
    },
    /// SQLite's error.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// What a piece of a transaction gives.
pub(super) type Outcome<T> = std::result::Result<T, Refusal>;

impl Store {
    /// Runs a transaction that writes, even when the caller has left, because what was computed
    /// should be kept.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        // Immediate, because a transaction that first reads and then writes does not wait for
        // other programs but fails.
        let behavior = TransactionBehavior::Immediate;
        self.ask(action, |reply| {
            Box::new(move |connection| drop(reply.send(transact(connection, behavior, work))))
        })
        .await
    }

    /// Runs a transaction that only reads, unless the caller has left.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        let behavior = TransactionBehavior::Deferred;
        self.ask(action, |reply| {
            Box::new(move |connection| {
                if !reply.is_closed() {
                    drop(reply.send(transact(connection, behavior, work)));
                }
            })
        })
        .await
    }

    async fn ask<T>(
        &self,
        action: &'static str,
        command: impl FnOnce(oneshot::Sender<Outcome<T>>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?.map_err(|refusal| match refusal {
            Refusal::NotFound { what, id } => StoreError::NotFound { what, id },
            Refusal::Sqlite(error) => failed(action, error),
        })
    }
}

/// Commits what `work` did, or nothing of it.
fn transact<T>(
    connection: &mut Connection,
    behavior: TransactionBehavior,
    work: impl FnOnce(&Transaction<'_>) -> Outcome<T>,
) -> Outcome<T> {
    let tx = connection.transaction_with_behavior(behavior)?;
    let value = work(&tx)?;
    tx.commit()?;
    Ok(value)
}
