"""Every error that is written for the person who meets it, in one tree.

The command prints a sentence for these alone, and the service logs them as one line; whatever else
is raised is a bug and shows its traceback. Each stands in the module that raises it; those that
several raise stand here.

* NextsliceError            what a person can act on: found, expected, what to do
  x SettingsError             a setting cannot be used; names the environment variable
  x OptionError               an option of a command cannot be used, or not beside another
  x TryAgainLater             somebody else is at it now: the command ends with code 75
    + RunTaken                  another process is on this run of an experiment
    + ClaimTaken                another worker holds this round
    + QueuesTaken               workers of another deployment take the jobs of these queues
    + TooManyRequests           more slices are asked for at once than have threads
    + TooManyVolumes            more volumes are asked for at once than have threads
    + TooManyPictures           more small pictures are asked for at once than have threads
  x EnvironmentFault          what we stand on does not do its part
    + FileFault                 a file, folder or connection: missing, not permitted, disk full
      - StoreFault                … of the store of rounds; names it
    + RedisUnavailable          Redis does not answer, or refuses us
      - NoRedis                   … while an experiment's runs are with the gpu workers
    + StartError                a process that was started ended, or does not answer
    + WeightsUnavailable        ImageNet weights cannot be had
  x StudioError               Label Studio refused, or answered something unexpected
    + NoToken                   no API key is set: the command ends as with other settings, 78
    + ImageUnavailable          an image cannot be had at this moment: its host is down, slow, busy
    + BodyTooLarge              an answer has more bytes than are read
  x LabelConfigError          a labelling config that cannot be segmented
  x AnnotationError           an annotation or task of Label Studio that cannot be read
  x MaskError                 a mask that is not what Label Studio's format says
  x VolumeError               a volume cannot be read, or not be written as asked
    + NoSuchVolume              a name that stands for nothing under NEXTSLICE_VOLUMES
    + DeadLinkError             a link in an HDF5 file leads to nothing
    + ReaderTimeout             the process that reads it has not answered in time
    + ReaderEnded               the process that reads it has ended
    + TiledUnavailable          a Tiled server does not answer, or not now
  x WindowError               two grey values between which nothing can be shown
  x AddressRefused            a slice address that we did not sign, or that has expired
  x FolderError               a folder of images and masks is not what is expected
    + MissingMaskError          nobody labelled this slice
  x HoldOutError              nothing would be left to train on, or to hold out
  x InvalidKey                a project key that is not <id>.<created timestamp>
  x StoreError                a file of the store is missing or damaged
    + TakenOff                  a project's folder is not in the store any more
  x ClaimLost                 another worker has taken this round over, or its folder is gone
  x ForeignJob                a job calls something else than our entry points
  x NotConnected              Label Studio does not know us as the backend of a project
  x MasksAwaited              the backend predicts nothing now, and slices enough are free
  x StaleQueue                the queue that was to be filled is not the published one any more
  x UnusableLabels            slices are annotated, and not one annotation can be used
  x StillComputing            a slice is not ready in the time that somebody would wait
  x TakesTooLong              a volume is not read in the time that somebody would wait for it
  x NoSuchSlice               a project has no such task, or the task no image
  x UnreadableSlices          too many slices cannot be read: something is down
  x EvidenceError             what a model left of the slices is not what a strategy needs
  x UnknownStrategyError      no strategy, or parameter of one, is called so
  x InvalidImage              an array is no slice
  x TooManyPixels             a picture claims more pixels than are read
  x InvalidBox                a box is not on its slice
  x InvalidMask               a mask does not fit its slice or the classes
  x NothingLabelled           not one labelled pixel to train or to evaluate on
  x UnreadableSlice           a slice cannot be read while the network is at it
  x OutOfMemory               a device's memory does not hold even the least piece
  x TrainingDiverged          the loss is no number any more
  x NotTrained                a learner without weights is asked for a result
  x UnknownArchitecture       a network that cannot be built
  x CheckpointError           bytes that are no checkpoint of ours, or not a whole one
  x DataError                 data that no experiment can be made of
  x RecordError               a file of an experiment is missing, damaged or of another one
  x RunFailed                 a run of an experiment ended with an error
  x ExportError               what was asked for cannot be exported
  x SourceError               the volume that slices were cut from cannot be looked at here

A test compares this with the classes that there are.
"""

from __future__ import annotations

from al_strategies.errors import NextsliceError

__all__ = [
    "EnvironmentFault",
    "FileFault",
    "NextsliceError",
    "OptionError",
    "RedisUnavailable",
    "SettingsError",
    "TimeUp",
    "TryAgainLater",
]


class TimeUp(BaseException):
    """A job has had its time. No Exception: wherever one is caught, so that a slice, a file or a
    label that raises anything does not stop the rest, this would be taken for it, and the job go
    on without an end."""


class SettingsError(NextsliceError, ValueError):
    """A setting has a value that cannot be used; the message names the variable."""


class OptionError(NextsliceError, ValueError):
    """An option or argument has a value that cannot be used; the message names it."""


class TryAgainLater(NextsliceError):
    """Somebody else is at it; the same call goes on when they are done."""


class EnvironmentFault(NextsliceError):
    """Something that we stand on does not do its part: a disk, a service, a process."""


class FileFault(EnvironmentFault):
    """The system refused: a file that is missing or not ours, a full disk, a lost connection."""


class RedisUnavailable(EnvironmentFault):
    """Redis does not answer, or refuses us."""
