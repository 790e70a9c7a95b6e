"""torchrun whose processes are forks: `forks.run([sys.executable, "-m", "tests.helpers.torchrun", …])`."""

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.run import main

from tests.helpers import forks

if __name__ == "__main__":
    subprocess_handler.Popen = forks.Popen
    main()
