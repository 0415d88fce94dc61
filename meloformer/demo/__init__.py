"""The web page: texts, wishes or a MIDI file in, music to hear and see out.

    settings  ->  server  ->  actions  ->  composer        a piece, bar by bar
                    |            |-> reading               a MIDI file of a stranger's
                    |            |-> waiting_line          one at a time
                    |-> border                             who may ask, and what
                    |-> static/                            the page itself

The server keeps nothing of a piece once it is sent: takes, players and files are the page's.
"""
